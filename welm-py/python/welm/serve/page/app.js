// The page: continue a text, chat, compare two settings.

import { Problem, models, stream } from "./api.js";
import { Settings } from "./settings.js";
import { SAMPLES, TEXTS } from "./texts.js";
import { Text, fromChat, fromCompletion, hide } from "./tokens.js";

const at = (id) => document.getElementById(id);
const LOGPROBS = 5;

const state = {
  view: "continue",
  language: localStorage.getItem("welm-language") ?? (navigator.language.startsWith("zh") ? "zh" : "en"),
  settings: {
    continue: [new Settings("settings")],
    chat: [new Settings("settings", { max_tokens: 512, n: null })],
    compare: [new Settings("settingsA"), new Settings("settingsB", { temperature: 0 })],
  },
  drafts: { continue: "", chat: "", compare: "" },
  messages: [],
  running: null,
};
const texts = () => TEXTS[state.language];

// Writes all that depends on the language and the view.
function render() {
  document.documentElement.lang = state.language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = texts()[element.dataset.text];
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", texts()[element.dataset.label]);
    element.title = texts()[element.dataset.label];
  }
  const chat = state.view === "chat";
  at("language").textContent = texts().language;
  at("run").textContent = chat ? texts().send : texts().run;
  at("prompt").placeholder = chat ? texts().message : texts().prompt;
  at("prompt").setAttribute("aria-label", at("prompt").placeholder);
  at("prompt").rows = chat ? 3 : 7;
  for (const id of ["system", "system-label", "talk"]) at(id).hidden = !chat;
  at("samples").hidden = chat;
  for (const tab of document.querySelectorAll("[role=tab]")) {
    tab.setAttribute("aria-selected", String(tab.dataset.view === state.view));
  }
  at("settings").replaceChildren(...state.settings[state.view].map((settings) => settings.element(texts())));
  at("samples").replaceChildren(...Object.entries(SAMPLES).map(([name, sample]) => {
    const button = document.createElement("button");
    button.textContent = texts().samples[name];
    button.dataset.sample = name;
    button.addEventListener("click", () => {
      at("prompt").value = state.drafts[state.view] = sample.prompt;
      const { temperature: _, ...others } = sample.settings; // settings that are compared keep their own
      const given = state.view === "compare" ? others : sample.settings;
      for (const settings of state.settings[state.view]) settings.reset(given);
      render();
    });
    return button;
  }));
}

function show(view) {
  state.running?.abort();
  state.view = view;
  at("prompt").value = state.drafts[view];
  at("outputs").replaceChildren();
  tell("");
  render();
}

function tell(message) {
  at("problem").textContent = message;
  at("problem").hidden = !message;
}

// A box for a text that is being written.
function output(title) {
  const box = document.createElement("div");
  box.className = "output";
  const head = document.createElement("h2"), text = document.createElement("div"), figures = document.createElement("div");
  head.textContent = title;
  text.className = "text";
  figures.className = "figures";
  box.append(...(title ? [head] : []), text, figures);
  at("outputs").append(box);
  return { text, figures };
}

// Counts tokens and seconds, and shows them under a text.
class Figures {
  constructor(element) {
    this.element = element;
    this.began = performance.now();
    this.first = null;
    this.count = 0;
  }

  add(tokens) {
    this.first ??= performance.now();
    this.count += tokens;
    this.show();
  }

  show(end = "") {
    if (this.first === null) return;
    const seconds = (performance.now() - this.first) / 1000;
    const rate = this.count > 1 && seconds > 0 ? `, ${((this.count - 1) / seconds).toFixed(1)} ${texts().perSecond}` : "";
    const first = `${texts().first} ${Math.round(this.first - this.began)} ms`;
    this.element.textContent = `${this.count} ${texts().tokens}${rate}, ${first}${end ? `; ${end}` : ""}`;
  }
}

const reason = (name) => (name === "length" ? texts().length : texts().ended);

async function complete(settings, signal) {
  const prompt = at("prompt").value, fields = settings.request();
  const title = (index) => [state.view === "compare" ? texts()[settings.name] : "", fields.n > 1 ? `${index + 1}` : ""].join(" ").trim();
  const places = Array.from({ length: fields.n }, (_, index) => output(title(index)));
  const written = places.map((place) => new Text(place.text, prompt));
  const figures = places.map((place) => new Figures(place.figures));
  const ends = places.map(() => "");
  try {
    const body = { model: at("model").value, prompt, logprobs: LOGPROBS, ...fields };
    for await (const { choices } of stream("v1/completions", body, signal)) {
      for (const choice of choices) {
        const tokens = choice.logprobs ? fromCompletion(choice.logprobs) : [];
        written[choice.index].add(choice.text, tokens);
        if (tokens.length) figures[choice.index].add(tokens.length);
        if (choice.finish_reason) ends[choice.index] = reason(choice.finish_reason);
      }
    }
  } finally {
    written.forEach((text) => text.end());
    figures.forEach((one, index) => one.show(ends[index] || texts().stopped));
  }
}

function message(role) {
  const box = document.createElement("div"), who = document.createElement("b"), text = document.createElement("div");
  box.className = `message ${role}`;
  who.textContent = role === "user" ? texts().you : texts().assistant;
  text.className = "text";
  box.append(who, text);
  at("talk").append(box);
  return box;
}

async function talk(signal) {
  const content = at("prompt").value;
  if (!content.trim()) return;
  const asked = message("user");
  asked.querySelector(".text").textContent = content;
  const box = message("assistant"), place = document.createElement("div");
  place.className = "figures";
  box.append(place);
  const written = new Text(box.querySelector(".text")), figures = new Figures(place);
  const said = [...state.messages, { role: "user", content }];
  at("prompt").value = state.drafts.chat = "";
  let end = "";
  try {
    const system = at("system").value.trim() ? [{ role: "system", content: at("system").value }] : [];
    const fields = state.settings.chat[0].request();
    const body = { model: at("model").value, messages: [...system, ...said], logprobs: true, top_logprobs: LOGPROBS, ...fields };
    for await (const { choices } of stream("v1/chat/completions", body, signal)) {
      for (const choice of choices) {
        const tokens = choice.logprobs?.content ? fromChat(choice.logprobs) : [];
        written.add(choice.delta.content ?? "", tokens);
        if (tokens.length) figures.add(tokens.length);
        if (choice.finish_reason) end = reason(choice.finish_reason);
      }
    }
  } catch (error) {
    if (!written.text) { // as if it had not been asked
      asked.remove();
      box.remove();
      at("prompt").value = state.drafts.chat = content;
    }
    throw error;
  } finally {
    written.end();
    figures.show(end || texts().stopped);
    if (written.text) state.messages = [...said, { role: "assistant", content: written.text }];
  }
}

async function run() {
  if (state.running) return;
  tell("");
  hide();
  const abort = new AbortController();
  state.running = abort;
  at("run").disabled = true;
  at("stop").disabled = false;
  if (state.view !== "chat") at("outputs").replaceChildren();
  try {
    if (state.view === "chat") await talk(abort.signal);
    else await Promise.all(state.settings[state.view].map((settings) => complete(settings, abort.signal)));
  } catch (error) {
    failed(error);
  } finally {
    abort.abort(); // the other one of two, if one has failed
    state.running = null;
    at("run").disabled = false;
    at("stop").disabled = true;
  }
}

function failed(error) {
  if (error.name === "AbortError") return;
  if (error instanceof Problem && error.status === 401) at("key-form").hidden = false;
  tell(error.message);
}

async function begin() {
  try {
    at("model").replaceChildren(...(await models()).map((name) => new Option(name, name)));
    at("key-form").hidden = true;
    tell("");
  } catch (error) {
    failed(error);
  }
}

for (const tab of document.querySelectorAll("[role=tab]")) tab.addEventListener("click", () => show(tab.dataset.view));
at("prompt").addEventListener("input", () => (state.drafts[state.view] = at("prompt").value));
at("prompt").addEventListener("keydown", (event) => {
  const send = event.key === "Enter" && !event.isComposing && (event.ctrlKey || event.metaKey || (state.view === "chat" && !event.shiftKey));
  if (!send) return;
  event.preventDefault();
  run();
});
at("run").addEventListener("click", run);
at("stop").addEventListener("click", () => state.running?.abort());
at("clear").addEventListener("click", () => {
  state.running?.abort();
  state.messages = [];
  at("talk").replaceChildren();
  at("outputs").replaceChildren();
  at("prompt").value = state.drafts[state.view] = "";
  tell("");
});
at("language").addEventListener("click", () => {
  state.language = state.language === "zh" ? "en" : "zh";
  localStorage.setItem("welm-language", state.language);
  render();
});
at("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme !== "dark";
  localStorage.setItem("welm-theme", dark ? "dark" : "light");
  document.documentElement.dataset.theme = dark ? "dark" : "light";
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("welm-key", at("key").value.trim());
  begin();
});
addEventListener("scroll", hide, { passive: true });
document.documentElement.dataset.theme =
  localStorage.getItem("welm-theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
render();
begin();
