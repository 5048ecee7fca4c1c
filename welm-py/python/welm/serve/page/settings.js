// The sampling settings, as sliders with their meaning.

const FIELDS = {
  temperature: { min: 0, max: 2, step: 0.05, value: 0.85 },
  top_p: { min: 0, max: 1, step: 0.01, value: 0.95 },
  top_k: { min: 0, max: 200, step: 1, value: 50 },
  max_tokens: { min: 1, max: 1024, step: 1, value: 64 },
  n: { min: 1, max: 8, step: 1, value: 1 },
  repetition_penalty: { min: 0.8, max: 2, step: 0.01, value: 1 },
  stops: { value: "" },
  seedField: { value: "" },
};

export class Settings {
  // `own` replaces some of the values that all begin with; a field whose value is null is not there.
  constructor(name, own = {}) {
    this.name = name;
    this.own = Object.fromEntries(Object.entries(FIELDS).map(([field, { value }]) => [field, own[field] === undefined ? value : own[field]]));
    this.reset();
  }

  reset(values = {}) {
    this.values = { ...this.own, ...values };
  }

  // The element, in a language.
  element(texts) {
    const group = document.createElement("fieldset");
    group.dataset.name = this.name;
    const legend = document.createElement("legend");
    legend.textContent = texts[this.name];
    group.append(legend);
    for (const [field, { min, max, step }] of Object.entries(FIELDS)) {
      if (this.values[field] === null) continue;
      const [name, meaning] = texts[field];
      const label = document.createElement("label");
      const input = document.createElement("input");
      const about = document.createElement("small");
      about.textContent = meaning;
      input.value = this.values[field];
      input.dataset.field = field;
      label.append(name, input);
      if (max === undefined) {
        input.addEventListener("input", () => (this.values[field] = input.value));
      } else {
        const slider = document.createElement("input");
        slider.type = "range";
        slider.dataset.slider = field;
        input.inputMode = "decimal";
        Object.assign(slider, { min, max, step });
        slider.value = this.values[field];
        slider.setAttribute("aria-label", name);
        slider.addEventListener("input", () => (input.value = this.values[field] = Number(slider.value)));
        input.addEventListener("input", () => {
          if (input.value.trim() === "" || Number.isNaN(Number(input.value))) return;
          this.values[field] = Number(input.value);
          slider.value = input.value;
        });
        label.append(slider);
      }
      label.append(about);
      group.append(label);
    }
    return group;
  }

  // The fields of a request.
  request() {
    const { stops, seedField, n, ...rest } = this.values;
    const stop = stops.split("|").map((text) => text.replaceAll("\\n", "\n").replaceAll("\\t", "\t")).filter(Boolean);
    const seed = seedField.trim() === "" ? {} : { seed: Number(seedField) };
    return { ...rest, n: n ?? 1, ...(stop.length ? { stop } : {}), ...seed };
  }
}
