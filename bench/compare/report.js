"use strict";
for (const section of document.querySelectorAll("[data-results]")) {
  const table = section.querySelector("table"), body = table.tBodies[0], rows = [...body.rows];
  const search = section.querySelector("[type=search]"), metric = section.querySelector("[name=metric]");
  const verdict = section.querySelector("[name=verdict]"), shown = section.querySelector("output");
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const fits = (!metric.value || row.dataset.metric === metric.value) && (!verdict.value || row.dataset.verdict === verdict.value)
        && words.every((word) => row.textContent.toLowerCase().includes(word));
      row.hidden = !fits;
      count += fits;
    }
    shown.textContent = `${count} of ${rows.length} rows`;
  };
  for (const control of [search, metric, verdict]) control.addEventListener("input", filter);
  for (const head of table.querySelectorAll("th[data-sort]")) {
    head.addEventListener("click", () => {
      const place = head.cellIndex, down = head.dataset.sort !== "down";
      head.dataset.sort = down ? "down" : "up";
      const value = (row) => row.cells[place].dataset.v ?? row.cells[place].textContent;
      rows.sort((a, b) => {
        const x = value(a), y = value(b), order = x - y;
        return (down ? 1 : -1) * (Number.isNaN(order) ? String(x).localeCompare(String(y), undefined, { numeric: true }) : order);
      });
      body.append(...rows);
    });
  }
  filter();
}
for (const section of document.querySelectorAll("[data-heat]")) {
  const data = JSON.parse(section.querySelector("script").textContent);
  const [metric, across, down] = ["metric", "across", "down"].map((name) => section.querySelector(`[name=${name}]`));
  const place = section.querySelector("div.heat");
  const add = (parent, tag, text) => { const node = parent.appendChild(document.createElement(tag)); node.textContent = text; return node; };
  const order = (values) => [...new Set(values)].sort((a, b) => String(a).localeCompare(String(b), undefined, { numeric: true }));
  const draw = () => {
    const cells = data.cells.filter((cell) => cell[0] === metric.value);
    const i = data.keys.indexOf(across.value), j = data.keys.indexOf(down.value);
    const columns = order(cells.map((cell) => cell[2][i])), lines = order(cells.map((cell) => cell[2][j]));
    const limit = Math.max(0.02, ...cells.map((cell) => Math.abs(cell[1])));
    const table = document.createElement("table"), head = add(add(table, "thead", ""), "tr", "");
    add(head, "th", `${down.value} \\ ${across.value}`);
    for (const column of columns) add(head, "th", column || "none");
    const body = add(table, "tbody", "");
    for (const line of lines) {
      const row = add(body, "tr", "");
      add(row, "th", line || "none");
      for (const column of columns) {
        const found = cells.filter((cell) => cell[2][i] === column && cell[2][j] === line);
        const mean = found.reduce((sum, cell) => sum + cell[1], 0) / found.length;
        const size = (100 * Math.abs(Math.expm1(mean))).toFixed(1), sign = size === "0.0" ? "" : mean > 0 ? "+" : "−";
        const box = add(row, "td", found.length ? sign + size : "");
        if (!found.length) continue;
        const strength = Math.min(1, Math.sqrt(Math.abs(mean) / limit));
        box.style.background = `color-mix(in srgb, var(${mean > 0 ? "--worse" : "--better"}) ${(75 * strength).toFixed(0)}%, var(--band))`;
        if (strength > 0.75) box.style.color = "var(--card)";
        box.title = `${found.length} cell${found.length > 1 ? "s" : ""}, geometric mean`;
      }
    }
    place.replaceChildren(table);
  };
  for (const control of [metric, across, down]) control.addEventListener("input", draw);
  draw();
}
