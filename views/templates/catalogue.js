/* The catalogue's table: search, filters, sorting and pages over all rows, of which only one page is ever drawn. */
(async function () {
  const ROWS_A_PAGE = 50;
  const table = document.getElementById("videos");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const said = document.getElementById("shown-rows");
  const search = document.getElementById("search");
  const chosen = { status: document.getElementById("only-status"), category: document.getElementById("only-category") };
  const { rows, columns, links, prefix } = JSON.parse(
    new TextDecoder().decode(await unpacked(document.getElementById("catalogue").textContent)),
  );
  const text = (name, row) => columns[name].values[columns[name].codes[row]] ?? null;
  const texts = new Set(Object.keys(columns).filter((name) => !Array.isArray(columns[name])));

  const figures = {
    score: (value) => (value > 0 && value < 0.0001 ? "< 0.0001" : value.toFixed(4)),
    share: (value) => `${(100 * value).toFixed(1)}%`,
    rank: (value) => (value > 99.5 ? "> 99" : value < 0.5 ? "< 1" : value.toFixed(0)),
    number: (value) => value.toFixed(3),
  };

  let haystack = null;
  function searched() {
    haystack ??= Array.from({ length: rows }, (_, row) =>
      ["video_id", "title", "creator_id", "product_id", "error_code", "error_message"]
        .map((name) => `\n${text(name, row) ?? ""}\n`).join("").toLowerCase(),
    );
    return haystack;
  }

  function ranks(name) {
    /* Numbers to sort rows by; texts by their place among the sorted values. */
    if (!texts.has(name)) return Float64Array.from(columns[name], (value) => value ?? NaN);
    const { codes, values } = columns[name];
    const place = new Float64Array(values.length);
    [...values.keys()].sort((a, b) => (values[a] < values[b] ? -1 : 1)).forEach((code, i) => (place[code] = i));
    return Float64Array.from(codes, (code) => (code < 0 ? NaN : place[code]));
  }

  const state = { by: null, down: true, page: 0 };
  let order = Uint32Array.from({ length: rows }, (_, row) => row); // as it came: highest PE first
  let shown = order;

  function sort(name) {
    state.down = state.by === name ? !state.down : !texts.has(name);
    state.by = name;
    const rank = ranks(name);
    const sign = state.down ? -1 : 1;
    order = order.slice().sort((a, b) => {
      const [x, y] = [rank[a], rank[b]];
      if (x === y || (x !== x && y !== y)) return a - b;
      if (x !== x) return 1; // what is unknown comes last, whichever way
      if (y !== y) return -1;
      return sign * (x - y);
    });
    for (const head of heads) {
      head.setAttribute("aria-sort", head.dataset.name === name ? (state.down ? "descending" : "ascending") : "none");
    }
    filter();
  }

  function filter() {
    const typed = search.value.trim().toLowerCase();
    const quoted = typed.length > 2 && typed.startsWith('"') && typed.endsWith('"'); // all of a text, not a part of it
    const words = quoted ? [`\n${typed.slice(1, -1)}\n`] : typed.split(/\s+/).filter(Boolean);
    const [status, code] = chosen.status.value.split("/");
    const category = chosen.category?.value ?? "";
    const hay = words.length ? searched() : null;
    shown = order.filter(
      (row) =>
        (!status || text("status", row) === status) &&
        (!code || text("error_code", row) === code) &&
        (!category || text("category", row) === category) &&
        words.every((word) => hay[row].includes(word)),
    );
    state.page = 0;
    draw();
  }

  function cell(name, kind, row) {
    const made = document.createElement(name === "video_id" ? "th" : "td");
    const value = texts.has(name) ? text(name, row) : columns[name][row];
    if (kind in figures) {
      made.className = "n";
      made.textContent = value === null ? "–" : figures[kind](value);
      return made;
    }
    made.className = name === "posted_at" ? "date" : name === "status" || name === "category" ? "" : "id";
    if (name === "video_id") made.scope = "row";
    const own = document.createElement(name === "status" ? "code" : "bdi");
    own.textContent = value ?? "–";
    const page = name === "video_id" ? (links[value] ?? (prefix && prefix + encodeURIComponent(value))) : null;
    if (page) {
      const link = document.createElement("a");
      link.href = page;
      link.append(own);
      made.append(link);
    } else made.append(own);
    if (name === "status" && text("error_code", row)) {
      const why = document.createElement("bdi");
      why.textContent = text("error_message", row) ?? "";
      const code = document.createElement("code");
      code.textContent = text("error_code", row);
      made.append(" ", code, " ", why);
    }
    return made;
  }

  function draw() {
    const first = state.page * ROWS_A_PAGE;
    const page = [...shown.slice(first, first + ROWS_A_PAGE)];
    body.replaceChildren(
      ...page.map((row) => {
        const line = document.createElement("tr");
        line.append(...heads.map((head) => cell(head.dataset.name, head.dataset.kind, row)));
        return line;
      }),
    );
    const number = (n) => n.toLocaleString("en");
    const of = shown.length === rows ? `${number(rows)} videos` : `${number(shown.length)} found among ${number(rows)} videos`;
    said.textContent = page.length ? `Rows ${number(first + 1)} to ${number(first + page.length)} of ${of}.` : `None of ${number(rows)} videos fits.`;
    const last = Math.max(0, Math.ceil(shown.length / ROWS_A_PAGE) - 1);
    const to = { "page-first": 0, "page-before": state.page - 1, "page-after": state.page + 1, "page-last": last };
    for (const [id, page] of Object.entries(to)) {
      const button = document.getElementById(id);
      button.disabled = page < 0 || page > last || page === state.page;
      button.onclick = () => {
        state.page = page;
        draw();
      };
    }
  }

  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(head.dataset.name));
    head.append(button);
    head.setAttribute("aria-sort", head.dataset.name === "pe_score" ? "descending" : "none");
  }
  state.by = "pe_score";
  search.addEventListener("input", filter);
  for (const select of Object.values(chosen)) select?.addEventListener("change", filter);
  for (const button of document.querySelectorAll("button[data-search]")) {
    button.addEventListener("click", () => {
      search.value = `"${button.dataset.search}"`;
      for (const select of Object.values(chosen)) if (select) select.value = "";
      filter();
      search.scrollIntoView({ block: "start" });
      search.focus({ preventScroll: true });
    });
  }
  document.getElementById("tools").hidden = document.getElementById("pager").hidden = false;
  draw();
  document.body.dataset.ready = "true";
})();
