// Shows tokens, coloured by probability, and the alternatives of one.

const box = document.getElementById("alternatives");

// A token of either API: its bytes, its log-probability, and the likeliest tokens at its place.
export function fromCompletion(logprobs) {
  return logprobs.tokens.map((name, at) => ({
    bytes: bytesOf(name),
    logprob: logprobs.token_logprobs[at],
    top: Object.entries(logprobs.top_logprobs[at] ?? {}).map(([other, logprob]) => ({ bytes: bytesOf(other), logprob })),
  }));
}

export function fromChat(logprobs) {
  return logprobs.content.map((token) => ({
    bytes: token.bytes, logprob: token.logprob,
    top: token.top_logprobs.map((other) => ({ bytes: other.bytes, logprob: other.logprob })),
  }));
}

// A token that is no text by itself is written as bytes:\xe5\xba.
function bytesOf(name) {
  const found = /^bytes:((?:\\x[0-9a-f]{2})+)$/.exec(name);
  return found ? found[1].slice(2).split("\\x").map((byte) => parseInt(byte, 16)) : [...new TextEncoder().encode(name)];
}

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const lenient = new TextDecoder("utf-8", { ignoreBOM: true });

function visible(bytes) {
  return lenient.decode(new Uint8Array(bytes)).replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
}

// A text that grows. Tokens whose bytes make one character together are one span.
export class Text {
  constructor(element, given = "") {
    this.element = element;
    element.replaceChildren();
    if (given) {
      const span = document.createElement("span");
      span.className = "given";
      span.textContent = given;
      element.append(span);
    }
    this.text = "";     // what the server has sent
    this.shown = 0;     // characters of it that have spans
    this.waiting = [];  // tokens without a span
    this.count = 0;
  }

  add(text, tokens) {
    this.text += text;
    for (const token of tokens) {
      this.count += 1;
      this.waiting.push(token);
    }
    this.show();
  }

  show() {
    while (this.waiting.length) {
      let bytes = [], part = null, n = 0;
      for (const token of this.waiting) {
        bytes = bytes.concat(token.bytes);
        n += 1;
        try {
          part = strict.decode(new Uint8Array(bytes));
          break;
        } catch {
          part = null;
        }
      }
      if (part === null) return;
      // The text ends before a stop string, of which there are tokens.
      const room = this.text.slice(this.shown);
      if (!room.startsWith(part) && part !== "") {
        if (!this.over) return;
        part = room;
      }
      const tokens = this.waiting.splice(0, n);
      this.shown += part.length;
      if (part) this.element.append(span(part, tokens));
    }
    if (this.over && this.shown < this.text.length) {
      this.element.append(this.text.slice(this.shown));
      this.shown = this.text.length;
    }
  }

  end() {
    this.over = true;
    this.show();
  }
}

function span(text, tokens) {
  const made = document.createElement("span");
  const logprob = tokens.reduce((sum, token) => sum + (token.logprob ?? 0), 0);
  made.className = "token";
  made.tabIndex = 0;
  made.textContent = text;
  made.style.setProperty("--share", `${Math.round((1 - Math.exp(logprob)) * 70)}%`);
  const tell = () => alternatives(made, tokens);
  for (const event of ["mouseenter", "focus", "click"]) made.addEventListener(event, tell);
  for (const event of ["mouseleave", "blur"]) made.addEventListener(event, hide);
  return made;
}

export function hide() {
  box.hidden = true;
}

function alternatives(place, tokens) {
  const table = document.createElement("table");
  for (const token of tokens) {
    const rows = [...token.top];
    const taken = (other) => other.bytes.join() === token.bytes.join();
    if (!rows.some(taken)) rows.push(token);
    rows.sort((a, b) => b.logprob - a.logprob);
    for (const row of rows) {
      const line = table.insertRow();
      if (taken(row)) line.className = "taken";
      line.insertCell().textContent = visible(row.bytes);
      line.insertCell().textContent = row.logprob === null ? "" : `${(Math.exp(row.logprob) * 100).toFixed(2)} %`;
    }
  }
  box.replaceChildren(table);
  box.hidden = false;
  const at = place.getBoundingClientRect(), size = box.getBoundingClientRect();
  const below = at.bottom + size.height + 8 < innerHeight;
  box.style.left = `${Math.max(4, Math.min(at.left, innerWidth - size.width - 4))}px`;
  box.style.top = `${below ? at.bottom + 4 : Math.max(4, at.top - size.height - 4)}px`;
}
