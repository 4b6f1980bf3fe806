(function () {
  "use strict";
  const MOST = 1000; // rows of a table that are made at once

  // Data: rows (their count) and columns as JSON, deflated, in base64; a column that is not a list has the same cell in every row.
  const unpacked = new Map();
  const unpack = async (id) => {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const data = JSON.parse(await new Response(stream).text());
    const columns = Object.keys(data.columns);
    const cell = (name, i) => (Array.isArray(data.columns[name]) ? data.columns[name][i] : data.columns[name]);
    const rows = Array.from({ length: data.rows }, (_, i) => columns.map((name) => cell(name, i)));
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
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv;charset=utf-8" }));
    link.download = button.dataset.file;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  };

  // Order: ascending first, then descending; what is empty stays last either way.
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

  // Words of a filter match where a word begins; "block 3" and "head 3" are one word, and 3 is not 31.
  const wordsOf = (text) =>
    (text.toLowerCase().match(/(?:block|head) \d+|\S+/g) || []).map(
      (word) => new RegExp("(^|[\\s_(-])" + word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&") + (/\d$/.test(word) ? "(?!\\d)" : ""))
    );

  // A table that can be sorted and filtered. rows: lists of values; show: puts rows into the page.
  const browse = (table, columns, rows, show) => {
    const controls = [...document.querySelectorAll('[data-table="' + table.id + '"]')];
    const status = controls.find((one) => one.getAttribute("role") === "status");
    const inputs = controls.filter((one) => one !== status);
    let sorting = null;
    const told = (row) =>
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
          if (words.length) chosen = chosen.filter((row) => words.every((word) => word.test(told(row))));
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
      input.closest("label").hidden = input.options.length < 3; // one value only: no choice
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

  // Tables whose rows stand in the page.
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

  // Tables that are made when they are opened, and what can be saved.
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
  if ("DecompressionStream" in window) {
    document.querySelectorAll(".without-script").forEach((one) => one.remove());
    document.querySelectorAll("button[data-saves]").forEach((button) => {
      button.hidden = false;
      button.addEventListener("click", () => save(button));
    });
    document.querySelectorAll("details.rows").forEach((details) => {
      const table = details.querySelector("table");
      details.addEventListener("toggle", () => fill(table), { once: true });
    });
  }

  // On paper nothing can be opened.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not(.rows):not([open])")];
    opened.forEach((one) => { one.open = true; });
  });
  window.addEventListener("afterprint", () => opened.forEach((one) => { one.open = false; }));
})();
