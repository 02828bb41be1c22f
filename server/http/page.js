"use strict";
const form = document.getElementById("try");
const fields = form ? [...form.querySelectorAll(".field")] : [];
const shown = document.getElementById("answer");

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
for (const code of document.querySelectorAll(".way pre, #routes pre")) {
  code.textContent = code.textContent
    .replace(/http:\/\/localhost:\d+/g, location.origin)
    .replace(/"localhost:\d+"/g, JSON.stringify(location.host));
}

/* Images: a canvas shows the file that is asked about, or takes what is drawn on it. */
class ImageField {
  constructor(field) {
    this.canvas = field.querySelector("canvas");
    this.context = this.canvas.getContext("2d");
    this.input = field.querySelector("input");
    this.note = field.querySelector(".small");
    this.dark = this.canvas.dataset.dark === "true";
    this.pointer = null;
    this.clear();
    field.querySelector(".clear").addEventListener("click", () => this.clear());
    field.querySelector(".swap").addEventListener("click", () => this.swap());
    this.input.addEventListener("change", () => this.input.files[0] && this.show(this.input.files[0]));
    this.canvas.addEventListener("pointerdown", (event) => this.begin(event));
    this.canvas.addEventListener("pointermove", (event) => this.draw(event));
    for (const name of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(name, () => { this.pointer = null; });
    }
    field.addEventListener("dragover", (event) => {
      event.preventDefault();
      this.canvas.classList.add("over");
    });
    field.addEventListener("dragleave", () => this.canvas.classList.remove("over"));
    field.addEventListener("drop", (event) => {
      event.preventDefault();
      this.canvas.classList.remove("over");
      this.take(event.dataTransfer);
    });
  }
  /* Whether an image was among what was dropped or pasted. */
  take(transfer) {
    const file = [...transfer.files].find((one) => one.type.startsWith("image/"));
    if (file) this.show(file);
    return Boolean(file);
  }
  clear() {
    this.file = null;
    this.drawn = false;
    this.input.value = "";
    this.note.textContent = "";
    this.context.fillStyle = this.dark ? "#000" : "#fff";
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }
  swap() {
    if (this.file) return;
    this.dark = !this.dark;
    const image = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
    for (let i = 0; i < image.data.length; i += 4) {
      for (let k = i; k < i + 3; k++) image.data[k] = 255 - image.data[k];
    }
    this.context.putImageData(image, 0, 0);
  }
  async show(file) {
    this.clear();
    this.file = file;
    this.note.textContent = `${file.name || "pasted image"}, ${file.size.toLocaleString("en")} bytes`;
    try {
      const image = await createImageBitmap(file);
      const scale = Math.min(this.canvas.width / image.width, this.canvas.height / image.height);
      const [width, height] = [image.width * scale, image.height * scale];
      const [x, y] = [(this.canvas.width - width) / 2, (this.canvas.height - height) / 2];
      this.context.drawImage(image, x, y, width, height);
    } catch {
      this.note.textContent += "; this browser does not show it";
    }
  }
  place(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }
  begin(event) {
    if (this.file) this.clear();
    this.canvas.setPointerCapture(event.pointerId);
    this.pointer = this.place(event);
    this.draw(event);
  }
  draw(event) {
    if (!this.pointer) return;
    const to = this.place(event);
    Object.assign(this.context, { lineWidth: this.canvas.width / 11, lineCap: "round",
      strokeStyle: this.dark ? "#fff" : "#000" });
    this.context.beginPath();
    this.context.moveTo(...this.pointer);
    this.context.lineTo(...to);
    this.context.stroke();
    this.pointer = to;
    this.drawn = true;
  }
  makeUp() {
    this.clear();
    const { width, height } = this.canvas;
    const shades = this.context.createLinearGradient(0, 0, width, height);
    for (let i = 0; i < 4; i++) shades.addColorStop(i / 3, `hsl(${Math.random() * 360} 70% ${20 + 60 * Math.random()}%)`);
    this.context.fillStyle = shades;
    this.context.fillRect(0, 0, width, height);
    this.drawn = true;
    this.note.textContent = "a made-up image";
  }
  async fill(value) {
    const bytes = Uint8Array.from(atob(value.b64), (letter) => letter.charCodeAt(0));
    await this.show(new File([bytes], "sample of the bundle"));
  }
  async values() {
    if (!this.file && !this.drawn) throw new Error("expected an image: draw, drop, paste or choose one");
    const blob = this.file ?? (await new Promise((done) => this.canvas.toBlob(done, "image/png")));
    const url = await new Promise((done, fail) => {
      const reader = new FileReader();
      reader.addEventListener("load", () => done(reader.result));
      reader.addEventListener("error", () => fail(reader.error));
      reader.readAsDataURL(blob);
    });
    return [{ b64: url.slice(url.indexOf(",") + 1) }];
  }
}

class TextField {
  constructor(field) {
    this.area = field.querySelector("textarea");
  }
  makeUp() {
    const words = "a quiet river ran below the old bridge while people talked about prices and rain".split(" ");
    const word = () => words[Math.floor(Math.random() * words.length)];
    this.area.value = `${Array.from({ length: 8 }, word).join(" ")}.`;
  }
  fill(value) {
    this.area.value = value;
  }
  values() {
    if (form.dataset.kind !== "embedding") return [this.area.value];
    const lines = this.area.value.split("\n").filter((line) => line.trim());
    return lines.length ? lines : [""];
  }
}

class TensorField extends TextField {
  random(shape) {
    if (shape.length) return Array.from({ length: shape[0] }, () => this.random(shape.slice(1)));
    const { dtype, low, high } = this.area.dataset;
    const value = Number(low) + Math.random() * (high - low);
    if (dtype === "bool") return value > 0.5;
    return dtype.includes("float") ? Number(value.toFixed(3)) : Math.round(value);
  }
  makeUp() {
    const text = JSON.stringify(this.random(JSON.parse(this.area.dataset.shape)));
    this.area.value = this.area.placeholder ? "" : text;
  }
  fill(value) {
    this.area.value = JSON.stringify(value);
  }
  values() {
    if (!this.area.value.trim()) return [this.random(JSON.parse(this.area.dataset.shape))];
    return [JSON.parse(this.area.value)];
  }
}
const KINDS = { image: ImageField, text: TextField, tensor: TensorField };
const inputs = fields.map((field) => ({
  name: field.dataset.name,
  input: new KINDS[field.dataset.kind](field),
}));

async function instances() {
  const columns = [];
  for (const { name, input } of inputs) columns.push([name, await input.values()]);
  const rows = Math.max(...columns.map(([, values]) => values.length));
  return Array.from({ length: rows }, (_, row) =>
    Object.fromEntries(columns.map(([name, values]) => [name, values[Math.min(row, values.length - 1)]])));
}

/* Answers: a label with bars, similarities of vectors, or values as they are. */
function bars(pairs, unit) {
  const rows = pairs.map(([name, value, words]) => {
    const meter = make("meter", { min: 0, max: 1, value: Math.max(0, value) });
    meter.setAttribute("aria-label", `${name}: ${words ?? unit(value)}`);
    return make("tr", {}, make("th", { scope: "row", textContent: name }), make("td", {}, meter),
      make("td", { textContent: unit(value) }));
  });
  return make("table", { className: "bars" }, make("tbody", {}, ...rows));
}
const percent = (value) => `${(100 * value).toFixed(1)} %`;

function similarities(vectors, sent) {
  const lengths = vectors.map((vector) => Math.hypot(...vector));
  const against = (i) => vectors[0].reduce((sum, x, k) => sum + x * vectors[i][k], 0) / (lengths[0] * lengths[i]);
  const [text] = Object.keys(sent[0]);
  const rest = vectors.slice(1).map((_, i) => [sent[i + 1][text], against(i + 1)]);
  const about = `${vectors[0].length} numbers of length ${lengths[0].toFixed(3)}`;
  if (!rest.length) return [make("p", { className: "label", textContent: about }),
    make("p", { textContent: "Write more texts, one a line, to see how similar they are to the first." })];
  return [make("p", { textContent: `Similarity to “${sent[0][text]}”:` }),
    bars(rest.sort((a, b) => b[1] - a[1]), (value) => value.toFixed(3))];
}

function written(prediction) {
  const isObject = prediction && typeof prediction === "object" && !Array.isArray(prediction);
  const probabilities = isObject && prediction.probabilities
    ? (Array.isArray(prediction.probabilities)
      ? prediction.probabilities.map((value, i) => [String(i), value])
      : Object.entries(prediction.probabilities))
    : null;
  if (probabilities) {
    const top = probabilities.sort((a, b) => b[1] - a[1]).slice(0, 10);
    const label = String(prediction.label ?? top[0][0]);
    return [make("p", { className: "label", textContent: label }), bars(top, percent)];
  }
  return [make("pre", { tabIndex: 0, textContent: JSON.stringify(prediction, null, 1) })];
}

function answered(body, sent) {
  const { predictions } = body;
  if (form.dataset.kind === "embedding" && predictions.every(Array.isArray)) return similarities(predictions, sent);
  if (form.dataset.kind === "softmax" && predictions.length === 1 && predictions[0] && typeof predictions[0] === "object" && !predictions[0].probabilities) {
    return written({ probabilities: predictions[0] });
  }
  return predictions.flatMap(written);
}

function times(headers) {
  const of = (name) => headers.get(`x-hloserve-${name}`);
  const parts = ["preprocess", "queue", "compute"].filter((name) => of(`${name}-us`) !== null)
    .map((name) => `${name} ${(of(`${name}-us`) / 1000).toFixed(1)} ms`);
  return `Bucket ${of("bucket")}: ${parts.join(", ")}.`;
}

async function ask(event) {
  event?.preventDefault();
  shown.hidden = false;
  try {
    const sent = await instances();
    const begun = performance.now();
    const answer = await fetch(form.dataset.route, {
      method: "POST",
      headers: { "content-type": "application/json", "x-hloserve-evidence": "1" },
      body: JSON.stringify({ instances: sent }),
    });
    const text = await answer.text();
    const took = `Answered in ${(performance.now() - begun).toFixed(0)} ms.`;
    const body = JSON.parse(text);
    const raw = make("details", {}, make("summary", { textContent: `Response ${answer.status}` }),
      make("pre", { tabIndex: 0, textContent: text }));
    if (!answer.ok) {
      shown.replaceChildren(make("p", { className: "error", textContent: body.error }), raw);
      return;
    }
    shown.replaceChildren(...answered(body, sent),
      make("p", { className: "small", textContent: `${took} ${times(answer.headers)}` }), raw);
  } catch (error) {
    shown.replaceChildren(make("p", { className: "error", textContent: error.message }));
  }
}

/* Charts: each is of the differences between two readings of the server's counts. */
const KEPT = 60;
const WIDTH = 300, HEIGHT = 120, BOTTOM = 100;
const readings = [];

function element(tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}
function picture(title, about, ...parts) {
  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${about}` });
  svg.append(element("line", { x1: 0, x2: WIDTH, y1: BOTTOM, y2: BOTTOM }), ...parts);
  return make("figure", {}, make("figcaption", { textContent: title }), svg);
}
function lines(title, series, unit) {
  const top = Math.max(...series.flat(), 0) || 1;
  const parts = series.map((values, i) => element("polyline", { class: i ? "second" : "first",
    points: values.map((value, k) => `${(k + KEPT - values.length) * WIDTH / (KEPT - 1)},${BOTTOM - 82 * value / top}`).join(" ") }));
  const last = series.map((values) => unit(values.at(-1) ?? 0)).join(" and ");
  return picture(title, `now ${last}`, ...parts, element("text", { x: 4, y: 13 }, unit(top)), element("text", { x: 4, y: 115 }, `now ${last}`));
}
function columns(title, pairs) {
  const total = pairs.reduce((sum, [, count]) => sum + count, 0);
  const top = Math.max(...pairs.map(([, count]) => count), 1);
  const wide = WIDTH / Math.max(pairs.length, 1);
  const parts = pairs.flatMap(([name, count], i) => {
    const high = 82 * count / top;
    return [element("rect", { x: i * wide + 3, y: BOTTOM - high, width: Math.max(1, wide - 6), height: high }),
      element("text", { x: (i + 0.5) * wide, y: 115, "text-anchor": "middle" }, name)];
  });
  const about = pairs.map(([name, count]) => `${name}: ${count}`).join(", ") || "none yet";
  return picture(title, about, ...parts, element("text", { x: 4, y: 13 }, `${total.toLocaleString("en")} batches`));
}
function quantile({ bounds, counts }, share) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  let below = 0;
  for (let i = 0; i < bounds.length && total; i++) {
    if (below + counts[i] >= share * total) {
      const low = i ? bounds[i - 1] : 0;
      return 1000 * (low + (bounds[i] - low) * (share * total - below) / (counts[i] || 1));
    }
    below += counts[i];
  }
  return total ? 1000 * bounds.at(-1) : 0;
}
function between(newer, older) {
  return { bounds: newer.bounds, counts: newer.counts.map((count, i) => count - older.counts[i]) };
}
function chart(figures) {
  const now = { at: performance.now(), ...JSON.parse(figures.dataset.stats) };
  readings.push(now);
  if (readings.length > KEPT + 1) readings.shift();
  const pairs = readings.slice(1).map((reading, i) => [reading, readings[i]]);
  const rates = pairs.map(([a, b]) => Math.max(0, 1000 * (a.requests - b.requests) / (a.at - b.at)));
  const latency = (share) => pairs.map(([a, b]) => quantile(between(a.durations, b.durations), share));
  const sizes = now.batches.counts.map((count, i) => [String(now.batches.bounds[i] ?? "more"), count]).filter(([, count]) => count);
  const holder = document.getElementById("charts");
  holder.hidden = false;
  holder.replaceChildren(
    lines("Requests a second", [rates], (value) => value.toFixed(1)),
    lines("Latency: half, and 99 % (dashed), within", [latency(0.5), latency(0.99)], (value) => `${value.toPrecision(3)} ms`),
    columns("Rows a batch, up to", sizes),
    columns("Buckets", Object.entries(now.buckets)));
}

/* The server writes the figures; the page is asked for again and they are taken from it. */
async function renew() {
  if (document.hidden) return;
  const answer = await fetch(location.pathname, { cache: "no-store" });
  const next = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (next.body.dataset.state !== document.body.dataset.state) return location.reload();
  const [old, fresh] = [document, next].map((page) => page.getElementById("figures"));
  if (old && fresh) {
    old.replaceChildren(...fresh.children);
    chart(fresh);
  }
}
setInterval(() => renew().catch(() => {}), 2000);

for (const button of document.querySelectorAll(".copy")) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.parentElement.querySelector("pre").textContent);
    const [word] = button.childNodes;
    word.textContent = "Copied";
    setTimeout(() => { word.textContent = "Copy"; }, 2000);
  });
}
if (form) {
  form.hidden = false;
  form.addEventListener("submit", ask);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask(event);
  });
  document.addEventListener("paste", (event) => {
    const image = inputs.find(({ input }) => input instanceof ImageField);
    if (image?.input.take(event.clipboardData)) event.preventDefault();
  });
  document.getElementById("make-up").addEventListener("click", () => {
    for (const { input } of inputs) input.makeUp();
  });
  document.getElementById("sample")?.addEventListener("click", async () => {
    const sample = JSON.parse(form.dataset.sample);
    for (const { name, input } of inputs) if (name in sample) await input.fill(sample[name]);
  });
  chart(document.getElementById("figures"));
}
