// The page of `python -m ssl_diffusion.view`: images side by side, moved together, a scale bar, the
// grid of embeddings. Everything it knows comes from about.json:
//   title; settings: {name: value};
//   images: [{tiles, title, width_um or null, grid: {x, y} or null}], x and y lines as fractions of
//   the image's width and height; grid_title or null.
"use strict";

const INK = "#1238d6";
const BAR_PX = 140; // the longest scale bar
const byId = (id) => document.getElementById(id);

function place(image) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const element = document.createElement("div");
  caption.textContent = image.title;
  element.className = "image";
  figure.append(caption, element);
  document.querySelector("main").append(figure);
  return element;
}

function open(image, element) {
  const viewer = OpenSeadragon({
    element,
    tileSources: image.tiles,
    drawer: "canvas",
    showNavigationControl: false,
    showNavigator: true,
    navigatorSizeRatio: 0.15,
    maxZoomPixelRatio: 16,
    animationTime: 0.5,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
  });
  const canvas = document.createElement("canvas");
  canvas.className = "drawn";
  viewer.canvas.append(canvas);
  viewer.addHandler("update-viewport", () => draw(viewer, image, canvas));
  return viewer;
}

function draw(viewer, image, canvas) {
  const { x: width, y: height } = viewer.viewport.getContainerSize();
  const ratio = window.devicePixelRatio;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  // An image is 1 wide in the viewport's coordinates.
  const item = viewer.world.getItemAt(0);
  if (!item) return;
  const size = item.getContentSize();
  const corner = viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true);
  const end = viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(1, size.y / size.x), true);
  if (byId("grid").checked && image.grid) drawGrid(pen, image.grid, corner, end, width, height);
  if (image.width_um) drawBar(pen, (end.x - corner.x) / image.width_um, height);
}

function drawGrid(pen, grid, corner, end, width, height) {
  const across = grid.x.map((part) => corner.x + part * (end.x - corner.x));
  const down = grid.y.map((part) => corner.y + part * (end.y - corner.y));
  // Lines closer than a few pixels would only cover the image.
  if (across[1] - across[0] < 4 || down[1] - down[0] < 4) return;
  pen.strokeStyle = INK;
  pen.beginPath();
  for (const x of across) {
    if (x < -1 || x > width + 1) continue;
    pen.moveTo(x, Math.max(corner.y, 0));
    pen.lineTo(x, Math.min(end.y, height));
  }
  for (const y of down) {
    if (y < -1 || y > height + 1) continue;
    pen.moveTo(Math.max(corner.x, 0), y);
    pen.lineTo(Math.min(end.x, width), y);
  }
  pen.stroke();
}

function drawBar(pen, pixelsPerUm, height) {
  // The largest 1, 2 or 5 times a power of ten that fits.
  const limit = BAR_PX / pixelsPerUm;
  const power = 10 ** Math.floor(Math.log10(limit));
  const um = [5, 2, 1].find((digit) => digit * power <= limit) * power;
  const [unit, name] = um >= 1e6 ? [1e6, "m"] : um >= 1e3 ? [1e3, "mm"] : [1, "µm"];
  const text = `${Number((um / unit).toPrecision(1))} ${name}`;
  const length = um * pixelsPerUm;
  pen.fillStyle = "rgba(255, 255, 255, 0.85)";
  pen.fillRect(10, height - 42, length + 20, 32);
  pen.fillStyle = "#222";
  pen.fillRect(20, height - 18, length, 3);
  pen.font = "13px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.fillText(text, 20 + length / 2, height - 24);
}

function moveTogether(viewers) {
  let mirroring = false; // what is mirrored raises the same events in turn
  const mirror = (from, move) => {
    if (mirroring || !byId("link").checked) return;
    mirroring = true;
    for (const viewer of viewers) if (viewer !== from && viewer.isOpen()) move(viewer.viewport);
    mirroring = false;
  };
  const align = (from) => {
    const centre = from.viewport.getCenter();
    const zoom = from.viewport.getZoom();
    mirror(from, (to) => to.zoomTo(zoom, null, true).panTo(centre, true));
  };
  for (const viewer of viewers) {
    viewer.addHandler("zoom", (event) =>
      mirror(viewer, (to) => to.zoomTo(event.zoom, event.refPoint, event.immediately)),
    );
    viewer.addHandler("pan", (event) =>
      mirror(viewer, (to) => to.panTo(event.center, event.immediately)),
    );
    viewer.addHandler("open", () => align(viewers[0]));
  }
  byId("link").addEventListener("change", () => align(viewers[0]));
}

function showSettings(settings) {
  const list = document.querySelector("dl");
  for (const [name, value] of Object.entries(settings)) {
    const term = document.createElement("dt");
    const description = document.createElement("dd");
    term.textContent = name;
    description.textContent = typeof value === "string" ? value : JSON.stringify(value);
    list.append(term, description);
  }
  document.querySelector("details").hidden = list.childElementCount === 0;
}

async function start() {
  const about = await (await fetch("about.json")).json();
  document.title = about.title;
  document.querySelector("h1").textContent = about.title;
  showSettings(about.settings);
  // All are placed first, so that every viewer starts in its final size.
  const elements = about.images.map(place);
  const viewers = about.images.map((image, number) => open(image, elements[number]));

  byId("link-choice").hidden = viewers.length < 2;
  if (viewers.length > 1) moveTogether(viewers);

  byId("grid-choice").hidden = !about.grid_title;
  byId("grid-choice").querySelector("span").textContent = about.grid_title;
  // `?grid=1` opens the page with the grid on.
  byId("grid").checked = new URLSearchParams(location.search).get("grid") === "1";
  byId("grid").addEventListener("change", () => viewers.forEach((viewer) => viewer.forceRedraw()));
  byId("fit").addEventListener("click", () => {
    const leaders = byId("link").checked ? viewers.slice(0, 1) : viewers;
    for (const viewer of leaders) viewer.viewport.goHome();
  });
}

start();
