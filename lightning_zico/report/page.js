"use strict";
// Sorts and filters the table, and draws the figures. Text from the page's data is only ever set as text.
const table = document.querySelector("#ranking");
const body = table.tBodies[0];
let rows = [...body.rows];
const inWords = new Intl.Collator(undefined, { numeric: true });

function sortBy(column, header) {
  const up = header.getAttribute("aria-sort") !== "ascending";
  const isNumber = header.dataset.kind === "number";
  const compare = isNumber ? (a, b) => a - b : inWords.compare;
  const keyed = rows.map((row) => {
    const { value } = row.cells[column].dataset;
    return [isNumber && value !== undefined ? Number(value) : value, row];
  });
  keyed.sort(([x], [y]) => {
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined); // what is missing stays last
    return up ? compare(x, y) : compare(y, x);
  });
  rows = keyed.map(([, row]) => row);
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  // Moved one by one inside the document, 5,000 rows take Chromium seconds.
  body.remove();
  body.replaceChildren();
  body.append(...rows);
  table.append(body);
}

[...table.tHead.rows[0].cells].forEach((header, column) => {
  header.querySelector("button").addEventListener("click", () => sortBy(column, header));
});

const filter = document.querySelector("#filter");
const status = document.querySelector("#status");
filter.addEventListener("input", () => {
  const wanted = filter.value.trim().toLowerCase();
  let shown = 0;
  for (const row of rows) {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
    shown += row.hidden ? 0 : 1;
  }
  status.textContent = `${shown} of ${rows.length} ${rows.length === 1 ? "candidate" : "candidates"}`;
});

// Expressions are interpreted, not compiled, so that the page's security policy can forbid `eval`.
const options = {
  mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false,
  tooltip: { disableDefaultStyle: true },
};
const specs = JSON.parse(document.querySelector("#charts").textContent);
document.querySelectorAll(".chart").forEach((element, idx) => window.vegaEmbed(element, specs[idx], options));
