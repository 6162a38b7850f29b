// The dialog with everything about one candidate, or about two beside each other.
const dialog = document.querySelector("#detail");
const title = document.querySelector("#detail-title");
const content = document.querySelector("#detail-content");

const isHyperparameter = (name) => name.startsWith("hparams/");

function cellsOf(row, isWanted) {
  const cells = columns.map(({ name }, idx) => [name, values[idx][row]]);
  return Object.fromEntries(cells.filter(([name]) => name !== "name" && name !== "error" && isWanted(name)));
}

function hyperparametersOf(row) {
  const cells = Object.entries(cellsOf(row, isHyperparameter)).map(([name, value]) => [name.slice(8), value]);
  return { ...Object.fromEntries(cells), ...data.details[row]?.hyperparameters };
}

function barOf(value, largest) {
  const bar = element("span", { className: value < 0 ? "bar negative" : "bar" });
  bar.style.width = `${(100 * Math.abs(value)) / largest}%`;
  return bar;
}

// Long names would leave no room for numbers.
const areLong = (rows) => rows.some((row) => names[row].length > data.longName);
const headsOf = (rows) => (areLong(rows) ? ["first", "second"].slice(0, rows.length) : rows.map((row) => names[row]));

function titleOf(rows) {
  if (rows.length === 1) return names[rows[0]];
  return areLong(rows) ? `First: ${names[rows[0]]}\nSecond: ${names[rows[1]]}` : rows.map((row) => names[row]).join(" and ");
}

// A line for each key of the records; with two candidates also the difference of their numbers.
function comparison(rows, records, hasBars) {
  const lines = [...new Set(records.flatMap(Object.keys))].map((key) => [key, records.map((record) => record[key] ?? null)]);
  const areNumbers = (parts) => parts.length === 2 && parts.every((value) => typeof value === "number");
  const hasDifference = lines.some(([, parts]) => areNumbers(parts));
  const largest = hasBars ? Math.max(...lines.flatMap(([, parts]) => parts.map(Math.abs))) : 0;
  const heads = ["", ...headsOf(rows), ...(hasDifference ? ["difference"] : [])];
  const header = heads.map((text) => element("th", { scope: "col", className: "plain", textContent: text }));
  const body = lines.map(([key, parts]) => {
    const cells = parts.map((value) => {
      const cell = element("td", { className: String(value).length > 40 ? "text" : "number", textContent: format(value) });
      if (hasBars && value !== null) cell.append(barOf(value, largest));
      return cell;
    });
    if (hasDifference) cells.push(element("td", { className: "number", textContent: areNumbers(parts) ? format(parts[1] - parts[0]) : "" }));
    return element("tr", {}, element("th", { scope: "row", className: "text", textContent: key }), ...cells);
  });
  const head = element("thead", { hidden: rows.length === 1 }, element("tr", {}, ...header));
  return element("table", {}, head, element("tbody", {}, ...body));
}

function section(text, rows, records, hasBars = false) {
  if (records.every((record) => Object.keys(record).length === 0)) return [];
  return [element("h3", { textContent: text }), comparison(rows, records, hasBars)];
}

function layersOf(row, proxy) {
  const { layers = [], added = {} } = data.details[row] ?? {};
  const values = added[proxy] ?? [];
  return Object.fromEntries(layers.map((layer, idx) => [layer, values[idx]]).filter(([, value]) => value != null));
}

// The page has details of the first candidates only, with and without a rank.
const isBeyondDetails = (row) => (row < numRanked ? row : row - numRanked) >= data.mostDetails;

function hintOf(rows) {
  let textContent = "";
  if (!data.hasCards) textContent = "This page was made without score cards, so it has no repeats, layers and tracebacks.";
  else if (data.canHaveParts && rows.some(isBeyondDetails))
    textContent = `Only the first ${data.mostDetails} candidates can have repeats, layers and tracebacks on this page.`;
  return textContent ? [element("p", { className: "hint", textContent })] : [];
}

function show(rows) {
  const details = rows.map((row) => data.details[row] ?? {});
  const part = (name) => details.map((detail) => detail[name] ?? {});
  const proxies = [...new Set(part("added").flatMap(Object.keys))];
  title.textContent = titleOf(rows);
  content.replaceChildren(
    ...hintOf(rows),
    ...rows.filter((row) => errors[row] !== null).map((row) => element("p", { className: "reason", textContent: errors[row] })),
    ...details.flatMap(({ traceback }) => (traceback == null ? [] : [element("pre", { textContent: data.tracebacks[traceback] })])),
    ...section("Numbers", rows, rows.map((row) => cellsOf(row, (name) => !isHyperparameter(name)))),
    ...section("Hyperparameters", rows, rows.map(hyperparametersOf)),
    ...section("Scores of the repeats", rows, part("byRepeat")),
    ...section("Why numbers are missing", rows, part("reasons")),
    ...proxies.flatMap((proxy) => section(`What each layer added to ${proxy}`, rows, rows.map((row) => layersOf(row, proxy)), true)),
  );
  dialog.showModal();
  dialog.scrollTop = 0;
}

document.querySelector("#close").addEventListener("click", () => dialog.close());
for (const list of [table.tBodies[0], failures]) {
  list?.addEventListener("click", ({ target }) => {
    if (target.closest("button")) show([Number(target.closest("[data-row]").dataset.row)]);
  });
}

// Comparing two

const compareButton = document.querySelector("#compare");

function labelCompare() {
  compareButton.disabled = chosen.length !== 2;
  compareButton.textContent = chosen.length === 2 ? "Compare 2 candidates" : `Compare (tick ${2 - chosen.length} more)`;
}

table.tBodies[0].addEventListener("change", ({ target }) => {
  const row = Number(target.closest("tr").dataset.row);
  if (target.checked) chosen.push(row);
  else chosen.splice(chosen.indexOf(row), 1);
  if (chosen.length > 2) {
    const first = chosen.shift();
    const box = table.tBodies[0].querySelector(`tr[data-row="${first}"] input`);
    if (box) box.checked = false;
  }
  labelCompare();
});
compareButton.addEventListener("click", () => show([...chosen]));

labelCompare();
draw();
for (const controls of document.querySelectorAll(".controls")) controls.hidden = false;
