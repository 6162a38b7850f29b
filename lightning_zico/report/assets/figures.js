"use strict";
// Draws the figures, one at a time, so that the page answers between them.
// Expressions are interpreted, not compiled, so that the page's security policy can forbid `eval`.
const options = {
  mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false,
  tooltip: { disableDefaultStyle: true },
};
const specs = JSON.parse(document.querySelector("#charts").textContent);
for (const [idx, chart] of document.querySelectorAll(".chart").entries()) {
  await new Promise((resolve) => { setTimeout(resolve); });
  await window.vegaEmbed(chart, specs[idx], options);
}
