// Filters the ledger's claims by verdict and by text. Without it the page reads the same, only longer.
addEventListener("DOMContentLoaded", () => {
  const isClaims = (table) => table.querySelector("th")?.textContent.trim() === "verdict";
  const tables = [...document.querySelectorAll("article table")].filter(isClaims);
  const title = document.querySelector("article h1");
  if (!tables.length || !title || !location.pathname.includes("ledger")) return;
  const rows = tables.flatMap((table) => [...table.tBodies[0].rows]);
  const verdictOf = (row) => row.cells[0].textContent.trim();
  const verdicts = [...new Set(rows.map(verdictOf))].sort();
  const chosen = new Set();
  const bar = document.createElement("div");
  const search = document.createElement("input");
  search.type = "search";
  search.placeholder = "find a claim, a wing, an id";
  search.setAttribute("aria-label", "find a claim");
  search.style.cssText = "padding:.3em .6em;margin:0 .5em .5em 0;border:1px solid currentColor;border-radius:.2em;color:inherit;background:transparent";
  const show = () => {
    const sought = search.value.trim().toLowerCase();
    for (const row of rows) {
      const right = !chosen.size || chosen.has(verdictOf(row));
      row.hidden = !(right && row.textContent.toLowerCase().includes(sought));
    }
    for (const table of tables) {
      const block = table.closest(".md-typeset__scrollwrap") ?? table;
      block.hidden = [...table.tBodies[0].rows].every((row) => row.hidden);
    }
  };
  search.addEventListener("input", show);
  bar.append(search);
  for (const verdict of verdicts) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "md-button";
    button.style.cssText = "padding:.2em .7em;margin:0 .4em .5em 0";
    button.textContent = `${verdict} (${rows.filter((row) => verdictOf(row) === verdict).length})`;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      const on = !chosen.delete(verdict);
      if (on) chosen.add(verdict);
      button.setAttribute("aria-pressed", String(on));
      button.classList.toggle("md-button--primary", on);
      show();
    });
    bar.append(button);
  }
  title.after(bar);
});
