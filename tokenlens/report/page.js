(function () {
  "use strict";
  const compare = (a, b) => {
    if (a === b) return 0;
    if (a === "" || a === null) return 1;
    if (b === "" || b === null) return -1;
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };
  // Sort ascending first, then descending; what is empty stays last either way.
  const ordered = (items, key, down) =>
    items
      .map((item, index) => [key(item), index, item])
      .sort((a, b) => {
        const empty = a[0] === "" || a[0] === null || b[0] === "" || b[0] === null;
        const order = compare(a[0], b[0]);
        return (down && !empty ? -order : order) || a[1] - b[1];
      })
      .map((entry) => entry[2]);
  const turn = (heading) => {
    const down = heading.getAttribute("aria-sort") === "ascending";
    heading.parentNode.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    return down;
  };
  const option = (select, value, text) => {
    const made = document.createElement("option");
    made.value = value;
    made.textContent = text;
    select.append(made);
  };
  const element = (name, text, numeric) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (numeric) made.className = "number";
    return made;
  };

  // The summary: its rows are in the page.
  const summary = document.getElementById("summary");
  const body = summary.tBodies[0];
  summary.querySelectorAll("thead th").forEach((heading, column) => {
    heading.firstElementChild.addEventListener("click", () => {
      const down = turn(heading);
      const key = (row) => {
        const cell = row.cells[column];
        if (cell.dataset.value === undefined) return cell.textContent;
        return cell.dataset.value === "" ? "" : Number(cell.dataset.value);
      };
      body.append(...ordered([...body.rows], key, down));
    });
  });
  const chosen = document.getElementById("summary-metric");
  new Set([...body.rows].map((row) => row.cells[0].textContent)).forEach((name) => option(chosen, name, name));
  const choose = () => {
    for (const row of body.rows) row.hidden = chosen.value !== "" && row.cells[0].textContent !== chosen.value;
  };
  chosen.addEventListener("change", choose);
  choose();

  // All rows: made when they are asked for.
  const MOST = 1000;
  const details = document.getElementById("all-rows");
  const data = JSON.parse(document.getElementById("rows-data").textContent);
  const numeric = data.columns.map((name) => data.numbers.includes(name));
  const value = (row, column) => (numeric[column] ? row[column] : data.strings[row[column]]);
  const table = document.getElementById("rows");
  const metric = document.getElementById("rows-metric");
  const filter = document.getElementById("rows-filter");
  const count = document.getElementById("rows-count");
  let sorting = null;
  const shown = (x) => (x === null ? "" : String(x).replace(/-/g, "−"));
  const text = (row) =>
    data.columns
      .map((name, column) => (name === "block" || name === "head" ? name + " " + row[column] : numeric[column] ? "" : value(row, column)))
      .join(" ");
  const show = () => {
    const name = metric.value;
    const words = filter.value.trim().toLowerCase();
    const whole = new RegExp("(^|\\s)" + words.replace(/[.*+?^${}()|[\]\\]/g, "\\$&") + "($|\\s)");
    let rows = data.rows.filter((row) => name === "" || data.strings[row[0]] === name);
    if (words) rows = rows.filter((row) => whole.test(text(row).toLowerCase()));
    if (sorting) rows = ordered(rows, (row) => value(row, sorting.column), sorting.down);
    const made = rows.slice(0, MOST).map((row) => {
      const line = document.createElement("tr");
      data.columns.forEach((_, column) => {
        const x = value(row, column);
        line.append(element("td", numeric[column] ? shown(x) : x, numeric[column]));
      });
      return line;
    });
    table.tBodies[0].replaceChildren(...made);
    count.textContent = rows.length > MOST ? "the first " + MOST + " of " + rows.length + " rows" : rows.length + " rows";
  };
  const head = document.createElement("tr");
  data.columns.forEach((name, column) => {
    const heading = element("th", undefined, numeric[column]);
    heading.scope = "col";
    const button = element("button", name);
    button.type = "button";
    button.addEventListener("click", () => {
      sorting = { column: column, down: turn(heading) };
      show();
    });
    heading.append(button);
    head.append(heading);
  });
  table.tHead.append(head);
  option(metric, "", "all");
  new Set(data.rows.map((row) => data.strings[row[0]])).forEach((name) => option(metric, name, name));
  metric.addEventListener("change", show);
  filter.addEventListener("input", show);
  details.addEventListener("toggle", () => {
    if (details.open && !table.tBodies[0].rows.length) show();
  });

  // On paper nothing can be opened.
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll(".finding details").forEach((one) => { one.open = true; });
  });
})();
