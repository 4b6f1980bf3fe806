(function () {
  "use strict";
  const MOST = 1000; // largest number of rows shown at once

  // Data: number of rows and columns as deflated JSON in base64; a column that is not a list has that value in every row.
  const unpacked = new Map();
  const inflated = async (id) => {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  };
  const unpack = async (id) => {
    const data = await inflated(id);
    const columns = Object.keys(data.columns);
    const entry = (name, i) => (Array.isArray(data.columns[name]) ? data.columns[name][i] : data.columns[name]);
    const rows = Array.from({ length: data.rows }, (_, i) => columns.map((name) => entry(name, i)));
    return { columns: columns, rows: rows };
  };
  const dataOf = (id) => {
    if (!unpacked.has(id)) unpacked.set(id, unpack(id));
    return unpacked.get(id);
  };
  const quoted = (x) => (x === null ? "" : /[",\r\n]/.test(x) ? '"' + String(x).replace(/"/g, '""') + '"' : String(x));
  const save = async (button) => {
    const data = await dataOf(button.dataset.saves);
    const lines = [data.columns, ...data.rows].map((row) => row.map(quoted).join(","));
    offer(lines.join("\n") + "\n", "text/csv", button.dataset.file);
  };
  const offer = (text, type, file) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: type + ";charset=utf-8" }));
    link.download = file;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  };

  // Sort in ascending order first, then descending; empty entries always come last.
  const missing = (x) => x === "" || x === null;
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };
  const ordered = (rows, key, down) =>
    rows
      .map((row, index) => [key(row), index, row])
      .sort((a, b) => {
        if (missing(a[0]) || missing(b[0])) return missing(a[0]) - missing(b[0]) || a[1] - b[1];
        const order = compare(a[0], b[0]);
        return (down ? -order : order) || a[1] - b[1];
      })
      .map((entry) => entry[2]);

  // Words of a filter match at the beginning of words; "block 3" and "head 3" count as one word, and 3 does not match 31.
  const wordsOf = (text) =>
    (text.toLowerCase().match(/(?:block|head) \d+|\S+/g) || []).map(
      (word) => new RegExp("(^|[\\s_(-])" + word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&") + (/\d$/.test(word) ? "(?!\\d)" : ""))
    );

  // Make a table sortable and filterable. rows: lists of values; show: writes rows into the page.
  const browse = (table, columns, rows, show) => {
    const controls = [...document.querySelectorAll('[data-table="' + table.id + '"]')];
    const status = controls.find((one) => one.getAttribute("role") === "status");
    const inputs = controls.filter((one) => one !== status);
    let sorting = null;
    const textOf = (row) =>
      columns
        .map((name, i) => (name === "block" || name === "head" ? name + " " + row[i] : typeof row[i] === "string" ? row[i] : ""))
        .join(" ")
        .toLowerCase();
    const draw = () => {
      let chosen = rows;
      for (const input of inputs) {
        const i = columns.indexOf(input.dataset.column);
        if (input.type === "checkbox") {
          if (input.checked) chosen = chosen.filter((row) => !missing(row[i]) && row[i] < Number(input.dataset.below));
        } else if (i >= 0) {
          if (input.value) chosen = chosen.filter((row) => String(row[i]) === input.value);
        } else {
          const words = wordsOf(input.value);
          if (words.length) chosen = chosen.filter((row) => words.every((word) => word.test(textOf(row))));
        }
      }
      if (sorting) chosen = ordered(chosen, (row) => row[sorting.column], sorting.down);
      show(chosen.slice(0, MOST));
      const all = chosen.length === 1 ? "1 row" : chosen.length + " rows";
      if (status) status.textContent = chosen.length > MOST ? "the first " + MOST + " of " + all : all;
    };
    for (const input of inputs) {
      input.addEventListener("input", draw);
      if (input.tagName !== "SELECT") continue;
      const i = columns.indexOf(input.dataset.column);
      new Set(rows.map((row) => String(row[i]))).forEach((value) => input.append(new Option(value, value)));
      input.closest("label").hidden = input.options.length < 3; // hide a choice with a single value
    }
    table.querySelectorAll("thead th").forEach((heading, column) => {
      heading.querySelector("button").addEventListener("click", () => {
        const down = heading.getAttribute("aria-sort") === "ascending";
        heading.parentNode.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        sorting = { column: column, down: down };
        draw();
      });
    });
    draw();
  };

  // Tables whose rows are in the page.
  document.querySelectorAll("table.sortable").forEach((table) => {
    const lines = new Map();
    const valueOf = (cell) => {
      const text = cell.dataset.value;
      if (text === undefined) return cell.textContent;
      return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
    };
    for (const line of table.tBodies[0].rows) lines.set([...line.cells].map(valueOf), line);
    const columns = [...table.tHead.rows[0].cells].map((heading) => heading.textContent);
    browse(table, columns, [...lines.keys()], (rows) => table.tBodies[0].replaceChildren(...rows.map((row) => lines.get(row))));
  });

  // Tables built when they are opened, and downloads.
  const make = (name, text, numeric) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (numeric) made.className = "number";
    return made;
  };
  const written = (x) => (x === null || x === false ? "" : x === true ? "yes" : typeof x === "number" ? String(x).replace(/-/g, "−") : x);
  const fill = async (table) => {
    const data = await dataOf(table.dataset.from);
    const numeric = data.columns.map((_, i) => data.rows.some((row) => typeof row[i] === "number"));
    const head = make("tr");
    data.columns.forEach((name, i) => {
      const heading = make("th", undefined, numeric[i]);
      heading.scope = "col";
      const button = make("button", name);
      button.type = "button";
      heading.append(button);
      head.append(heading);
    });
    table.tHead.append(head);
    browse(table, data.columns, data.rows, (rows) => {
      const lines = rows.map((row) => {
        const line = make("tr");
        line.append(...row.map((x, i) => make("td", written(x), numeric[i])));
        return line;
      });
      table.tBodies[0].replaceChildren(...lines);
    });
  };
  // Figures: enlarge, save as SVG, print as PDF, copy the command, values at the pointer, and a narrow drawing on a phone.
  const drawingOf = (name) => document.querySelector('[id="' + name + '"] .drawing');
  const dialog = document.getElementById("enlarged");
  const enlarge = (name) => {
    const home = drawingOf(name);
    const figure = home.querySelector("svg");
    dialog.querySelector(".drawing").append(figure);
    dialog.addEventListener("close", () => home.append(figure), { once: true });
    dialog.showModal();
  };
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  const saveDrawing = (button) => {
    const light = document.styleSheets[0].cssRules[0].style; // a file has the colours of the light page
    const svg = drawingOf(button.dataset.draws).querySelector("svg").cloneNode(true);
    const [, , width, height] = svg.getAttribute("viewBox").split(" ");
    for (const [name, value] of [["width", width + "pt"], ["height", height + "pt"]]) svg.setAttribute(name, value);
    const text = new XMLSerializer().serializeToString(svg);
    offer(text.replace(/var\((--\w+)\)/g, (_, name) => light.getPropertyValue(name).trim()), "image/svg+xml", button.dataset.file);
  };
  const printDrawing = (button) => {
    const [, , width, height] = drawingOf(button.dataset.prints).querySelector("svg").getAttribute("viewBox").split(" ");
    const alone = make("style", "@page { size: " + width + "pt " + height + "pt; margin: 0 } @media print {" +
      " body > :not(#enlarged) { display: none !important } #enlarged { all: initial } #enlarged > :not(.drawing) { display: none }" +
      " #enlarged svg { display: block; width: " + width + "pt; height: " + height + "pt } }");
    document.head.append(alone);
    enlarge(button.dataset.prints);
    window.addEventListener("afterprint", () => { alone.remove(); dialog.close(); }, { once: true });
    window.print();
  };
  const copy = async (button) => {
    const here = decodeURIComponent(location.pathname).split("/").slice(0, -1).join("/");
    const run = location.protocol !== "file:" || !here ? "RUN" : /^[\w./+-]+$/.test(here) ? here : "'" + here.replace(/'/g, "'\\''") + "'";
    const { copies, compares } = button.dataset;
    const command = "tokenlens " + (compares ? "compare " + run + " " + compares : "figure " + run + " " + copies + " --out " + copies + ".pdf");
    try {
      await navigator.clipboard.writeText(command);
    } catch {
      const field = make("textarea", command);
      document.body.append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
    }
    button.title = command;
    const words = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = words; }, 1500);
  };

  const tip = make("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const say = (text, event) => {
    tip.textContent = text;
    tip.hidden = !text;
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const above = event.clientY + 18 + tip.offsetHeight > innerHeight;
    tip.style.left = left + "px";
    tip.style.top = event.clientY + (above ? -tip.offsetHeight - 12 : 18) + "px";
  };
  const inside = ([x0, y0, x1, y1], x, y) => x >= x0 - 4 && x <= x1 + 4 && y >= y0 - 4 && y <= y1 + 4;
  const valueAt = (hover, x, y) => {
    const panel = hover.panels.find((one) => inside(one.box, x, y));
    if (!panel) return "";
    if (panel.cells) {
      const [x0, y0, x1, y1] = panel.box;
      const within = (share, count) => Math.min(Math.max(Math.floor(share * count), 0), count - 1);
      const row = within((y - y0) / (y1 - y0), panel.cells.length);
      const cell = panel.cells[row][within((x - x0) / (x1 - x0), panel.cells[row].length)];
      return cell && (panel.row === "block" ? "block " + row + ": " : "") + cell;
    }
    let nearest = "", least = 14; // points
    for (const [left, up, text] of panel.points) {
      const distance = Math.hypot(left - x, up - y);
      if (distance < least) [least, nearest] = [distance, text];
    }
    return nearest;
  };
  const hovers = new WeakMap();
  const point = async (event, svg, id) => {
    if (!hovers.has(svg)) hovers.set(svg, inflated(id));
    const hover = await hovers.get(svg);
    const box = svg.getBoundingClientRect();
    const [width, height] = hover.size;
    say(valueAt(hover, ((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height), event);
  };
  const narrow = matchMedia("(max-width: 40rem)");
  const wide = new Map();
  const fit = async (drawing, name) => {
    const svg = drawing.querySelector("svg");
    if (!svg || narrow.matches === wide.has(name)) return;
    if (!narrow.matches) {
      svg.replaceWith(wide.get(name));
      wide.delete(name);
      return;
    }
    wide.set(name, svg);
    const small = await inflated("narrow-" + name);
    const holder = make("template");
    holder.innerHTML = small.svg;
    const drawn = holder.content.firstElementChild;
    hovers.set(drawn, Promise.resolve(small.hover));
    if (wide.get(name) === svg) svg.replaceWith(drawn); // not if the window became wide again meanwhile
  };
  const equip = (figure) => {
    const drawing = figure.querySelector(".drawing");
    const look = (event) => {
      const svg = event.target.closest("svg");
      if (svg) point(event, svg, "hover-" + figure.id);
    };
    drawing.querySelector("svg").addEventListener("pointermove", look); // stays with the drawing when it is enlarged
    drawing.addEventListener("pointermove", look);
    drawing.addEventListener("pointerleave", () => { tip.hidden = true; });
    fit(drawing, figure.id);
    narrow.addEventListener("change", () => fit(drawing, figure.id));
  };
  const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);
  const readMap = async (event) => {
    const { first, columns, rows } = event.target.dataset;
    const box = event.target.getBoundingClientRect();
    const row = Math.min(Math.floor(((event.clientY - box.top) / box.height) * rows), rows - 1);
    const column = Math.min(Math.floor(((event.clientX - box.left) / box.width) * columns), columns - 1);
    const data = await dataOf("data-cosine_maps");
    const value = data.rows[Number(first) + row * columns + column];
    if (value) say("patch (" + row + ", " + column + "): cosine " + signed(value[data.columns.indexOf("cosine")]), event);
  };

  if ("DecompressionStream" in window) {
    document.querySelectorAll(".without-script").forEach((one) => one.remove());
    for (const [kind, act] of [["saves", save], ["enlarges", (button) => enlarge(button.dataset.enlarges)], ["draws", saveDrawing], ["prints", printDrawing], ["copies", copy], ["compares", copy]]) {
      document.querySelectorAll("button[data-" + kind + "]").forEach((button) => {
        button.hidden = false;
        button.addEventListener("click", () => act(button));
      });
    }
    document.querySelectorAll("figure").forEach(equip);
    document.querySelectorAll(".map img[data-first]").forEach((image) => {
      image.addEventListener("pointermove", readMap);
      image.addEventListener("pointerleave", () => { tip.hidden = true; });
    });
    document.querySelectorAll("details.rows").forEach((details) => {
      const table = details.querySelector("table");
      details.addEventListener("toggle", () => fill(table), { once: true });
    });
  }

  // Open all folds for printing.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not(.rows):not([open])")];
    opened.forEach((one) => { one.open = true; });
  });
  window.addEventListener("afterprint", () => opened.forEach((one) => { one.open = false; }));
})();
