/* A video under its heat and outline, and a chart on which the playhead runs. */
async function view(viewer) {
  const data = JSON.parse(viewer.querySelector(".data").textContent);
  const film = viewer.querySelector("video");
  const canvas = viewer.querySelector("canvas");
  const outline = viewer.querySelector(".stage svg");
  const head = viewer.querySelector(".playhead");
  const reading = viewer.querySelector(".reading");
  const show = { heat: viewer.querySelector(".show-heat"), outline: viewer.querySelector(".show-outline") };
  const samples = data.e.length;
  let still = 0; // the time where there is no film to ask

  const now = () => (film ? film.currentTime : still);
  const end = data.end;

  function between(seconds) {
    const place = Math.min(Math.max(seconds * data.rate, 0), samples - 1);
    const before = Math.floor(place);
    return [before, Math.min(before + 1, samples - 1), place - before];
  }

  let levels = null;
  let pixels = null;
  if (canvas) {
    levels = new Uint8Array(await unpacked(data.levels));
    pixels = canvas.getContext("2d").createImageData(canvas.width, canvas.height);
  }

  function drawHeat(seconds) {
    if (!canvas) return;
    canvas.hidden = !show.heat.checked || seconds >= end;
    if (film) film.classList.toggle("grey", !canvas.hidden);
    if (canvas.hidden) return;
    const [before, after, share] = between(seconds);
    const cells = canvas.width * canvas.height;
    for (let cell = 0; cell < cells; cell++) {
      const level = Math.round((1 - share) * levels[before * cells + cell] + share * levels[after * cells + cell]);
      pixels.data.set(data.palette[level], 4 * cell);
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  function quadsAt(seconds) {
    const [before, after, share] = between(seconds);
    const [first, second] = [data.quads[before], data.quads[after]];
    if (first.length !== second.length) return share < 0.5 ? first : second;
    return first.map((quad, copy) => quad.map((value, i) => (1 - share) * value + share * second[copy][i]));
  }

  function drawOutline(seconds) {
    if (!outline) return;
    const quads = seconds < end ? quadsAt(seconds) : [];
    outline.toggleAttribute("hidden", !show.outline.checked || !quads.length);
    const drawn = quads.map((quad) => `M${quad.join(" ")}Z`).join("");
    for (const line of outline.children) line.setAttribute("d", drawn);
  }

  function sampleAt(seconds) {
    return Math.min(Math.floor(seconds * data.rate + 1e-6), samples - 1);
  }

  function inWords(seconds) {
    if (seconds >= end + 1e-3) return `${seconds.toFixed(1)} s: not looked at any more`;
    const k = sampleAt(seconds);
    const parts = [`E ${data.e[k].toFixed(4)}`];
    if (data.p) parts.push(`P ${(100 * data.p[k]).toFixed(1)}%`, `PE ${data.pe[k].toFixed(4)}`);
    return `${seconds.toFixed(1)} s: ${parts.join(", ")}`;
  }

  function draw() {
    const seconds = now();
    drawHeat(seconds);
    drawOutline(seconds);
    head.style.setProperty("--at", Math.min(seconds / end, 1));
    head.setAttribute("aria-valuenow", seconds.toFixed(1));
    head.setAttribute("aria-valuetext", inWords(seconds));
    reading.textContent = inWords(seconds);
  }

  function seek(seconds) {
    const to = Math.min(Math.max(seconds, 0), end);
    still = to;
    if (film) film.currentTime = to;
    draw();
  }

  function run() {
    draw();
    if (film && !film.paused && !film.ended) requestAnimationFrame(run);
  }

  if (film) {
    for (const event of ["play", "seeked", "timeupdate", "loadeddata"]) film.addEventListener(event, run);
    film.addEventListener("error", () => viewer.querySelector(".unplayable").removeAttribute("hidden"));
  }
  for (const box of Object.values(show)) if (box) box.addEventListener("change", draw);
  for (const button of document.querySelectorAll("button[data-seek]")) {
    button.addEventListener("click", () => {
      seek(Number(button.dataset.seek));
      viewer.scrollIntoView({ block: "nearest" });
    });
  }
  const chart = head.parentElement;
  const follow = (event) => {
    const box = chart.getBoundingClientRect();
    const across = (event.clientX - box.left) / box.width;
    seek(((across - data.left) / (data.right - data.left)) * end);
  };
  chart.addEventListener("pointerdown", (event) => {
    chart.setPointerCapture(event.pointerId);
    follow(event);
    head.focus();
    event.preventDefault();
  });
  chart.addEventListener("pointermove", (event) => {
    if (chart.hasPointerCapture(event.pointerId)) follow(event);
  });
  const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -5, PageUp: 5 };
  head.addEventListener("keydown", (event) => {
    let to = null;
    if (event.key in steps) to = now() + steps[event.key];
    if (event.key === "Home") to = 0;
    if (event.key === "End") to = end;
    if (to === null) return;
    seek(to);
    event.preventDefault();
  });
  draw();
}

(async function () {
  await Promise.all([...document.querySelectorAll(".viewer")].map(view));
  document.body.dataset.ready = "true";
})();
