// Filters the ledger's claims by wing, verdict and text, and keeps the choice in the address.
// Without it the page reads the same, only longer.
addEventListener("DOMContentLoaded", () => {
  const sections = [...document.querySelectorAll("article section.study")];
  const first = document.querySelector("article table");
  if (!sections.length || !first) return;

  const cells = (row) => [...row.cells].map((cell) => cell.textContent);
  const studies = sections.map((section) => {
    const table = [...section.querySelectorAll("table")].find((t) => t.querySelector("th")?.textContent.trim() === "verdict");
    table.dataset.claims = "";
    const labels = [...table.tHead.rows[0].cells].map((th) => th.textContent.trim());
    const rows = [...table.tBodies[0].rows].map((row) => {
      [...row.cells].forEach((cell, i) => { if (i > 1 && cell.textContent.trim()) cell.dataset.label = labels[i]; });
      return { row, verdict: row.cells[0].querySelector(".verdict").textContent.trim(), text: `${section.dataset.wing} ${cells(row).join(" ")}`.toLowerCase() };
    });
    return { section, wing: section.dataset.wing, rows };
  });
  const all = studies.flatMap((study) => study.rows.map((row) => ({ ...row, wing: study.wing })));
  const asked = new URLSearchParams(location.search);
  const chosen = { wing: new Set(asked.getAll("wing")), verdict: new Set(asked.getAll("verdict")) };

  const order = ["holds", "fails", "undecided", "not run", "shown by test", "reported"];
  const bar = document.createElement("div");
  bar.className = "ledger-filter";
  bar.setAttribute("role", "search");
  const line = (name) => {
    const box = document.createElement("div");
    box.innerHTML = `<span class="name"></span>`;
    box.firstChild.textContent = name;
    bar.append(box);
    return box;
  };
  const search = document.createElement("input");
  search.type = "search";
  search.placeholder = "find a claim, an id, a word";
  search.setAttribute("aria-label", "find a claim");
  search.value = asked.get("find") ?? "";
  const told = document.createElement("output");
  const top = line("find");
  top.append(search, told);

  const show = () => {
    const sought = search.value.trim().toLowerCase();
    const passes = (set, value) => !set.size || set.has(value);
    let seen = 0;
    const wings = new Set();
    for (const study of studies) {
      let here = 0;
      for (const one of study.rows) {
        const right = passes(chosen.wing, study.wing) && passes(chosen.verdict, one.verdict) && one.text.includes(sought);
        one.row.hidden = !right;
        here += right;
      }
      study.section.hidden = !here;
      if (here) wings.add(study.wing);
      seen += here;
    }
    for (const heading of document.querySelectorAll("article h2")) {
      heading.hidden = !wings.has(heading.firstChild.textContent.trim());
    }
    told.textContent = seen === all.length ? `${all.length} claims` : `${seen} of ${all.length} claims`;
    const address = new URLSearchParams();
    for (const kind of ["wing", "verdict"]) for (const value of chosen[kind]) address.append(kind, value);
    if (sought) address.set("find", sought);
    const query = address.toString();
    history.replaceState(null, "", (query ? `?${query}` : location.pathname) + location.hash);
  };
  for (const kind of ["wing", "verdict"]) {
    const box = line(kind);
    for (const value of [...new Set(all.map((one) => one[kind]))].sort((a, b) => order.indexOf(a) - order.indexOf(b) || (a < b ? -1 : 1))) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `${value} ${all.filter((one) => one[kind] === value).length}`;
      button.setAttribute("aria-pressed", String(chosen[kind].has(value)));
      button.addEventListener("click", () => {
        const on = !chosen[kind].delete(value);
        if (on) chosen[kind].add(value);
        button.setAttribute("aria-pressed", String(on));
        show();
      });
      box.append(button);
    }
  }
  search.addEventListener("input", show);
  (first.closest(".md-typeset__scrollwrap") ?? first).after(bar);
  show();
});
