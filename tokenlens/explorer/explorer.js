// Draws the panels computed in Python and sends back the selection {image, block, site, head, token, other, shared}.
// A token is the name of a prefix token or [row, column] on the first model's grid.

const WIDTH = 480; // width of a panel's canvas in pixels, which CSS scales

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function floats(bytes) {
  // Copy, because the bytes may not start at a multiple of four.
  const view = bytes.buffer ? new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength) : new Uint8Array(bytes);
  return new Float32Array(view.slice().buffer);
}

function octets(bytes) {
  return bytes.buffer ? new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength) : new Uint8Array(bytes);
}

const clamp = (index, count) => Math.min(Math.max(index, 0), count - 1);

const number = (x) => (Math.abs(x) >= 100 ? x.toFixed(0) : Math.abs(x) >= 10 ? x.toFixed(1) : x.toFixed(2)).replace("-", "−");

function grey(picture) {
  const canvas = element("canvas", { width: picture.width, height: picture.height });
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const [r, g, b] = pixels.data.subarray(i, i + 3);
    pixels.data.fill(0.299 * r + 0.587 * g + 0.114 * b, i, i + 3); // ITU-R BT.601
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

class Panel {
  constructor(key, { grid, share }, colours, pick, keys) {
    this.key = key;
    this.grid = grid;
    this.share = share; // height and width of the patch grid over those of the photograph
    this.colours = colours;
    this.caption = element("figcaption");
    this.canvas = element("canvas", { className: "map", tabIndex: 0, width: WIDTH, height: WIDTH });
    this.bar = element("canvas", { className: "bar", width: 256, height: 1 });
    this.low = element("span");
    this.here = element("span", { className: "here" });
    this.high = element("span");
    this.root = element("figure", {}, this.caption, this.canvas, this.bar,
      element("div", { className: "scale" }, this.low, this.here, this.high));
    this.root.dataset.panel = key;
    if (pick) this.canvas.addEventListener("click", (event) => pick(this.patch(event)));
    this.canvas.addEventListener("keydown", keys);
    this.canvas.addEventListener("mousemove", (event) => this.showValue(this.patch(event)));
    this.canvas.addEventListener("mouseleave", () => this.showValue(null));
  }

  patch(event) {
    const box = this.canvas.getBoundingClientRect();
    const index = (at, axis) => clamp(Math.floor((at / this.share[axis]) * this.grid[axis]), this.grid[axis]);
    return [index((event.clientY - box.top) / box.height, 0), index((event.clientX - box.left) / box.width, 1)];
  }

  showValue(patch) {
    if (!patch) this.here.textContent = "";
    else {
      const value = this.map?.colours ? `: ${number(this.values[patch[0] * this.grid[1] + patch[1]])}` : "";
      this.here.textContent = `(${patch[0]}, ${patch[1]})${value}`;
    }
  }

  // Without a map, the photograph is drawn in colour.
  draw(picture, title, map, marked, opacity) {
    this.map = map;
    this.values = map ? floats(map.values) : null;
    this.caption.textContent = title.replaceAll(/\((\d+), (\d+)\)/g, "($1,\u00a0$2)"); // keep a patch on one line
    this.canvas.setAttribute("aria-label", `${title}; arrow keys move the patch`);
    const context = this.canvas.getContext("2d");
    this.canvas.height = Math.round((WIDTH * picture.height) / picture.width);
    context.drawImage(map ? picture.grey : picture.colour, 0, 0, WIDTH, this.canvas.height);
    this.bar.style.visibility = map?.colours ? "visible" : "hidden";
    if (map) this.drawMap(context, opacity);
    for (const { patches, colour, width } of marked) this.outline(context, patches, colour, width);
    this.showValue(null);
  }

  drawMap(context, opacity) {
    const table = this.colours[this.map.colours];
    context.save();
    context.imageSmoothingEnabled = false;
    context.globalAlpha = opacity;
    context.drawImage(picture(this.values, this.grid, this.map, table), 0, 0, WIDTH * this.share[1], this.canvas.height * this.share[0]);
    context.restore();
    if (table) this.bar.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(table), 256, 1), 0, 0);
    this.low.textContent = table ? this.map.labels[0] : "red, green, blue";
    this.high.textContent = table ? `${this.map.labels[1]} ${this.map.unit}` : "";
  }

  outline(context, patches, colour, width) {
    const height = (this.canvas.height * this.share[0]) / this.grid[0], wide = (WIDTH * this.share[1]) / this.grid[1];
    for (const [line, thick] of [["#ffffff", width + 5], [colour, width]]) {
      context.strokeStyle = line;
      context.lineWidth = thick;
      for (const [row, column] of patches) context.strokeRect(column * wide, row * height, wide, height);
    }
  }
}

// The values of a map as a canvas of one pixel per patch; values without a table are colours.
function picture(values, [rows, columns], { limits: [low, high] }, table) {
  const small = element("canvas", { width: columns, height: rows });
  const pixels = new ImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    if (table) {
      const step = Math.min(Math.max(Math.round(((values[i] - low) / (high - low)) * 255), 0), 255);
      pixels.data.set(table.subarray(4 * step, 4 * step + 4), 4 * i);
    } else pixels.data.set([...values.subarray(3 * i, 3 * i + 3), 1].map((part) => 255 * part), 4 * i);
  }
  small.getContext("2d").putImageData(pixels, 0, 0);
  return small;
}

class Model {
  constructor(info, colours, pick, keys, chooseHead) {
    this.heading = element("h4");
    this.numbers = element("table");
    this.notes = element("div", { className: "notes" });
    this.panels = new Map();
    this.make = (key) => new Panel(key, info, colours, key === "match" ? null : pick, keys);
    this.info = info;
    this.colours = colours;
    this.chooseHead = chooseHead;
    this.row = element("div", { className: "panels" });
    const beside = element("div", {}, this.numbers, this.notes);
    this.heads = element("div", { className: "heads" });
    this.root = element("div", { className: "model" }, this.heading, this.row,
      element("div", { className: "lower" }, this.heads, beside));
  }

  panel(key) {
    if (!this.panels.has(key)) this.panels.set(key, this.make(key));
    return this.panels.get(key);
  }

  draw(picture, other, view, opacity, head) {
    this.heading.textContent = `${this.info.title} · block ${view.block} · ${view.site}`;
    const count = view.high?.length ?? 0;
    const token = Array.isArray(view.token) ? [{ patches: [view.token], colour: "#1b1b1f", width: 5 }] : [];
    const nearest = view.nearest ? [{ patches: [view.nearest], colour: "#1b1b1f", width: 5 }] : [];
    const maps = view.panels.filter(({ key }) => key !== "heads" && (key !== "match" || other));
    if (picture) {
      this.panel("photograph").draw(picture, "photograph", null,
        [{ patches: view.high ?? [], colour: "#ffd400", width: 4 }, ...token], opacity);
      for (const map of maps) {
        const match = map.key === "match";
        this.panel(map.key).draw(match ? other : picture, map.title, map, match ? nearest : token, opacity);
      }
      const focused = this.row.contains(document.activeElement) ? document.activeElement : null;
      this.row.replaceChildren(...["photograph", ...maps.map(({ key }) => key)].map((key) => this.panel(key).root));
      focused?.isConnected && focused.focus({ preventScroll: true });
    }
    this.drawHeads(view.panels.find(({ key }) => key === "heads"), head);
    this.numbers.replaceChildren(...view.numbers.map(([label, text]) =>
      element("tr", {}, element("td", { textContent: label }), element("td", { textContent: text }))));
    const marked = count ? [`${count} high-norm ${count === 1 ? "patch" : "patches"} outlined in the photograph`] : [];
    this.notes.replaceChildren(...[...view.notes, ...marked].map((text) => element("p", { textContent: text })));
  }

  drawHeads(map, chosen) {
    if (!map) return this.heads.replaceChildren();
    const values = floats(map.values), size = this.info.grid[0] * this.info.grid[1];
    const buttons = Array.from({ length: values.length / size }, (_, head) => {
      const small = picture(values.subarray(head * size, (head + 1) * size), this.info.grid, map, this.colours[map.colours]);
      const button = element("button", { type: "button", title: `choose head ${head}` }, small, `head ${head}`);
      button.setAttribute("aria-pressed", String(head === chosen));
      button.addEventListener("click", () => this.chooseHead(head === chosen ? null : head));
      return button;
    });
    const scale = `${map.labels[0]} to ${map.labels[1]} ${map.unit}`;
    this.heads.replaceChildren(element("span", { className: "hint", textContent: `${map.title}: ${scale}` }), ...buttons);
  }
}

function options(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => element("option", { value, textContent: text })));
}

function render({ model, el }) {
  const choices = model.get("choices");
  const raw = model.get("colours");
  const colours = { sequential: octets(raw.sequential), diverging: octets(raw.diverging) };
  const selection = () => model.get("selection");

  function choose(changes) {
    const now = selection(), next = { ...now, ...changes };
    if (JSON.stringify(now) === JSON.stringify(next)) return;
    model.set("selection", next);
    model.save_changes();
    drawControls();
  }

  // -- controls

  const image = element("select"), site = element("select"), head = element("select"), other = element("select");
  const shared = element("input", { type: "checkbox" });
  const block = element("input", { type: "range", min: 0, max: choices.blocks.length - 1, step: 1 });
  const blockName = element("output");
  const opacity = element("input", { type: "range", min: 0, max: 1, step: 0.01, value: 0.72 });
  options(image, choices.images.map((name, index) => [index, name]));
  options(site, choices.sites.map((name) => [name, name]));
  options(head, [["", "mean"], ...Array.from({ length: choices.heads }, (_, index) => [index, index])]);
  options(other, choices.images.map((name, index) => [index, name]));
  other.addEventListener("change", () => choose({ other: Number(other.value) }));
  shared.addEventListener("change", () => choose({ shared: shared.checked }));
  image.addEventListener("change", () => choose({ image: Number(image.value) }));
  site.addEventListener("change", () => choose({ site: site.value }));
  head.addEventListener("change", () => choose({ head: head.value === "" ? null : Number(head.value) }));
  block.addEventListener("input", () => choose({ block: choices.blocks[Number(block.value)] }));
  opacity.addEventListener("input", () => drawViews());

  const buttons = choices.prefix.map(({ name, title }) => {
    const button = element("button", { type: "button", textContent: title });
    button.addEventListener("click", () => choose({ token: name }));
    return { name, button };
  });
  const selected = element("span", { className: "selected" });
  selected.setAttribute("aria-live", "polite");
  const hint = element("span", { className: "hint", textContent: "click a patch: its cosines, attention and nearest patch · arrow keys move it · [ and ] change the block" });

  function drawControls() {
    const now = selection();
    image.value = now.image;
    site.value = now.site;
    head.value = now.head ?? "";
    other.value = now.other ?? 0;
    shared.checked = now.shared;
    block.value = choices.blocks.indexOf(now.block);
    blockName.textContent = now.block;
    for (const { name, button } of buttons) button.setAttribute("aria-pressed", String(now.token === name));
    selected.textContent = Array.isArray(now.token) ? `patch (${now.token.join(", ")})` : "";
  }

  // -- models

  const first = choices.models[0];
  const [rows, columns] = first.grid;

  function key(event) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const now = selection();
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (steps[event.key]) {
      const [row, column] = Array.isArray(now.token) ? now.token : [rows >> 1, columns >> 1];
      const [down, right] = Array.isArray(now.token) ? steps[event.key] : [0, 0];
      choose({ token: [Math.min(Math.max(row + down, 0), rows - 1), Math.min(Math.max(column + right, 0), columns - 1)] });
    } else if (event.key === "[" || event.key === "]") {
      const index = choices.blocks.indexOf(now.block) + (event.key === "]" ? 1 : -1);
      if (index >= 0 && index < choices.blocks.length) choose({ block: choices.blocks[index] });
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  // A click on another model's grid selects the first model's patch at that position.
  const pickOn = ({ grid, share }) => (patch) => choose({ token: patch.map((at, axis) =>
    clamp(Math.floor((((at + 0.5) / grid[axis]) * share[axis] * first.grid[axis]) / first.share[axis]), first.grid[axis])) });
  const models = choices.models.map((info) => new Model(info, colours, pickOn(info), key, (head) => choose({ head })));

  const loaded = { photographs: [], others: [] };
  const loading = { photographs: 0, others: 0 };
  async function load(name) {
    const mine = ++loading[name];
    const pictures = await Promise.all(model.get(name).map(async (bytes) => {
      const picture = await createImageBitmap(new Blob([octets(bytes)], { type: "image/jpeg" }));
      return { width: picture.width, height: picture.height, colour: picture, grey: grey(picture) };
    }));
    if (mine !== loading[name]) return;
    loaded[name] = pictures;
    drawViews();
  }
  const loadPhotographs = () => load("photographs"), loadOthers = () => load("others");

  function drawViews() {
    const views = model.get("views");
    models.forEach((shown, index) => views[index] &&
      shown.draw(loaded.photographs[index], loaded.others[index], views[index], Number(opacity.value), selection().head));
  }

  const label = (text, control, ...others) => {
    control.setAttribute("aria-label", text);
    return element("label", {}, text, control, ...others);
  };
  const root = element("div", { className: "tokenlens-explorer" },
    element("div", { className: "controls" }, label("image", image), label("block", block, blockName), label("site", site),
      label("head", head), label("map over photograph", opacity),
      ...(choices.images.length > 1 ? [label("find patch in", other)] : []),
      ...(choices.models.length > 1 ? [label("one scale", shared)] : [])),
    element("div", { className: "tokens" }, ...buttons.map(({ button }) => button), selected, hint),
    ...models.map((shown) => shown.root));
  root.dataset.lmSuppressShortcuts = "true"; // keep JupyterLab from handling the keys
  el.append(root);

  const listeners = { "change:selection": drawControls, "change:views": drawViews, "change:photographs": loadPhotographs,
    "change:others": loadOthers };
  for (const [event, listener] of Object.entries(listeners)) model.on(event, listener);
  drawControls();
  loadPhotographs();
  loadOthers();
  return () => {
    for (const [event, listener] of Object.entries(listeners)) model.off(event, listener);
  };
}

export default { render };
