"use strict";
// The table and the list of failures: drawn from the page's data, a part at a time. Text is only ever set as text.
const data = JSON.parse(document.querySelector("#data").textContent);
const { columns, values, numRanked, step, numFailuresFirst } = data;
const column = (name) => columns.findIndex((one) => one.name === name);
const names = values[column("name")];
const errors = values[column("error")];
const noun = (count) => (count === 1 ? "candidate" : "candidates");

const grouped = new Intl.NumberFormat("en", { maximumSignificantDigits: 17 });

// The same texts as `_format` of page.py.
function format(value) {
  if (value === null) return "";
  if (typeof value !== "number") return value;
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e15) return grouped.format(value);
  if (size >= 1e5 && size < 1e15) return grouped.format(Math.round(value));
  if (size >= 1e-4 && size < 1e5) return grouped.format(Number(value.toPrecision(5)));
  return value.toExponential(4).replace(/([+-])(\d)$/, "$10$2");
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Order and filter

const inWords = new Intl.Collator(undefined, { numeric: true });
const sorted = { column: column("rank"), bestFirst: true };
const everyone = [...names.keys()];
let order = everyone.slice(0, numRanked);
const shown = { ranked: step, failed: numFailuresFirst };
let wanted = "";
let texts; // what the filter looks at, made when it is first used

function compare(idx, bestFirst) {
  const { isText, lowIsBest } = columns[idx];
  const cells = values[idx];
  const sign = lowIsBest === bestFirst ? 1 : -1;
  const difference = isText ? inWords.compare : (a, b) => a - b;
  return (x, y) => {
    const [a, b] = [cells[x], cells[y]];
    if (a === null || b === null) return (a === null) - (b === null); // what is missing stays last
    return sign * difference(a, b);
  };
}

function matches(row) {
  if (wanted === "") return true;
  texts ??= everyone.map((one) => {
    const parts = columns.map(({ name, isSearched }, idx) => {
      if (!isSearched || values[idx][one] === null) return "";
      return name.startsWith("hparams/") ? `${name.slice(8)}=${values[idx][one]}` : values[idx][one];
    });
    return parts.join("\n").toLowerCase();
  });
  return texts[row].includes(wanted);
}

const matching = () => order.filter(matches);
const failing = () => everyone.slice(numRanked).filter(matches);

// Rows

const table = document.querySelector("#ranking");
const headers = [...table.tHead.rows[0].cells];
const visible = new Set(columns.keys());
visible.delete(column("error")); // only of candidates that failed, which have a list of their own
const chosen = []; // rows to compare

function nameButton(row) {
  return element("button", { type: "button", className: "open", textContent: names[row], ariaHasPopup: "dialog" });
}

function rowOf(row) {
  const cells = headers.map(({ dataset }) => {
    const idx = Number(dataset.column);
    if (!visible.has(idx)) return "";
    if (columns[idx].name !== "name") {
      return element("td", { className: columns[idx].isText ? "text" : "number", textContent: format(values[idx][row]) });
    }
    const box = element("input", { type: "checkbox", checked: chosen.includes(row), ariaLabel: `Compare ${names[row]}` });
    return element("th", { className: "text name", scope: "row" }, element("div", {}, box, nameButton(row)));
  });
  const made = element("tr", {}, ...cells);
  made.dataset.row = row;
  return made;
}

function failureOf(row) {
  const made = element("dt", {}, nameButton(row));
  made.dataset.row = row;
  return [made, element("dd", { textContent: errors[row] })];
}

const status = document.querySelector("#status");
const more = document.querySelector("#more");
const failures = document.querySelector("#failures");
const moreFailures = document.querySelector("#more-failures");

function labelMore(button, left) {
  button.hidden = left <= 0;
  button.textContent = `Show ${Math.min(step, left)} more of ${grouped.format(left)}`;
}

function orderInWords() {
  const { name, isText, lowIsBest } = columns[sorted.column];
  const [up, down] = isText ? ["A to Z", "Z to A"] : ["lowest first", "highest first"];
  return `Sorted by ${name}, ${lowIsBest === sorted.bestFirst ? up : down}.`;
}

function draw() {
  const rows = matching();
  table.tBodies[0].replaceChildren(...rows.slice(0, shown.ranked).map(rowOf));
  headers.forEach((header) => { header.hidden = !visible.has(Number(header.dataset.column)); });
  labelMore(more, rows.length - shown.ranked);
  let text = `${grouped.format(rows.length)} of ${grouped.format(numRanked)} ${noun(numRanked)}`;
  if (failures) {
    const failed = failing();
    failures.replaceChildren(...failed.slice(0, shown.failed).flatMap(failureOf));
    labelMore(moreFailures, failed.length - shown.failed);
    text += `, ${grouped.format(failed.length)} of ${grouped.format(names.length - numRanked)} failed`;
  }
  status.textContent = `${text}. ${orderInWords()}`;
}

function showMore(kind, button) {
  shown[kind] += step;
  draw();
  if (button.hidden) (kind === "ranked" ? table.parentElement : failures.querySelector("dt:last-of-type button")).focus();
}

more.addEventListener("click", () => showMore("ranked", more));
moreFailures?.addEventListener("click", () => showMore("failed", moreFailures));

headers.forEach((header) => {
  const idx = Number(header.dataset.column);
  header.querySelector("button").addEventListener("click", () => {
    sorted.bestFirst = sorted.column !== idx || !sorted.bestFirst;
    sorted.column = idx;
    order.sort(compare(idx, sorted.bestFirst));
    for (const other of headers) other.removeAttribute("aria-sort");
    header.ariaSort = columns[idx].lowIsBest === sorted.bestFirst ? "ascending" : "descending";
    draw();
    table.parentElement.scrollTop = 0;
  });
});

const filter = document.querySelector("#filter");
filter.addEventListener("input", () => {
  wanted = filter.value.trim().toLowerCase();
  Object.assign(shown, { ranked: step, failed: numFailuresFirst });
  draw();
});

// Columns

const chooser = document.querySelector("#columns");
chooser.append(...headers.map(({ dataset }) => Number(dataset.column)).filter((idx) => columns[idx].name !== "name").map((idx) => {
  const box = element("input", { type: "checkbox", checked: true });
  box.addEventListener("change", () => {
    if (box.checked) visible.add(idx);
    else visible.delete(idx);
    draw();
  });
  return element("label", {}, box, columns[idx].name);
}));

// Copies

const done = document.querySelector("#done");
const inOrder = () => headers.map(({ dataset }) => Number(dataset.column)).filter((idx) => visible.has(idx));

// As `as_csv` writes it: a text never starts a formula.
function csvCell(value) {
  if (typeof value !== "string") return value === null ? "" : String(value);
  const text = /^'*[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

document.querySelector("#csv").addEventListener("click", () => {
  const shownColumns = [...inOrder(), column("error")];
  const rows = [...matching(), ...failing()];
  const lines = [
    shownColumns.map((idx) => csvCell(columns[idx].name)),
    ...rows.map((row) => shownColumns.map((idx) => csvCell(values[idx][row]))),
  ];
  const text = lines.map((line) => `${line.join(",")}\n`).join("");
  const href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  element("a", { href, download: "ranking.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
  done.textContent = `Downloaded ${grouped.format(rows.length)} ${noun(rows.length)}.`;
});

// As `as_markdown` writes it: no text is markup.
const marks = /[&<>|`*[\]\\~@#$]|(?<![\p{L}\p{N}_])_+|_+(?![\p{L}\p{N}_])/gu;
const entity = (mark) => `&#${mark.charCodeAt(0)};`;

function markdownCell(value) {
  const text = format(value).replace(/\s+/g, " ").trim();
  return text.replace(marks, (found) => [...found].map(entity).join(""));
}

document.querySelector("#markdown").addEventListener("click", async () => {
  const shownColumns = inOrder();
  const rows = matching().slice(0, shown.ranked);
  const lines = [
    shownColumns.map((idx) => markdownCell(columns[idx].name)),
    shownColumns.map((idx) => (columns[idx].isText ? "---" : "---:")),
    ...rows.map((row) => shownColumns.map((idx) => markdownCell(values[idx][row]))),
  ];
  try {
    await navigator.clipboard.writeText(lines.map((line) => `| ${line.join(" | ")} |`).join("\n"));
    done.textContent = `Copied ${grouped.format(rows.length)} ${noun(rows.length)}.`;
  } catch {
    done.textContent = "The browser does not allow this page to copy. Download the CSV instead.";
  }
});
