// The live tab. Runs once, when its component is shown: `element` is the component.
// Sends a pose or a camera image some times a second, takes the frames that were made, and shows them at their rate.
const facts = __FACTS__;
const find = (name) => element.querySelector(name);
const svg = find("svg.figure"), canvas = find("canvas.made"), eye = find("video.eye"), picture = find("img.picture");
const buttons = {};
for (const name of ["skeleton", "camera", "stop", "again"]) buttons[name] = find("button." + name);
const [height, width] = facts.size;
// OpenPose-18: which joint hangs on which; moving one takes along all that hang on it.
const parent = [1, -1, 1, 2, 3, 1, 5, 6, 1, 8, 9, 1, 11, 12, 0, 0, 14, 15];
const colours = ["#e6194b", "#f58231", "#ffe119", "#bfef45", "#3cb44b", "#42d4f4", "#4363d8", "#911eb4", "#f032e6"];
let body = facts.body.map((p) => [...p]);
const still = facts.body.map((p, j) => (parent[j] < 0 ? 0 : distance(p, facts.body[parent[j]])));
let room = null, kind = null, after = 0, busy = false, clock = null, waiting = [], player = null, stream = null;

function distance(a, b) { return Math.hypot(a[0] - b[0], a[1] - b[1]); }
function hangsOn(joint, on) { for (let j = joint; j >= 0; j = parent[j]) if (j === on) return true; return false; }
function shift(joint, dx, dy) {
  body.forEach((p, j) => { if (hangsOn(j, joint)) { p[0] += dx; p[1] += dy; } });
}
// A joint stays as far from the one it hangs on as it was; what hangs on it comes along.
function turn(joint, x, y) {
  const base = body[parent[joint]], far = Math.hypot(x - base[0], y - base[1]) || 1, length = still[joint];
  const to = [base[0] + (x - base[0]) * length / far, base[1] + (y - base[1]) * length / far];
  shift(joint, to[0] - body[joint][0], to[1] - body[joint][1]);
}
// Wrists and ankles: elbow and knee give way, on the side where they are.
function reach(end, x, y) {
  const middle = parent[end], root = body[parent[middle]], a = still[middle], b = still[end];
  const d = Math.min(Math.max(Math.hypot(x - root[0], y - root[1]), Math.abs(a - b) + 1e-3), a + b - 1e-3);
  const direction = Math.atan2(y - root[1], x - root[0]);
  const bend = Math.acos(Math.min(1, Math.max(-1, (a * a + d * d - b * b) / (2 * a * d))));
  const m = body[middle];
  const side = Math.sin(Math.atan2(m[1] - root[1], m[0] - root[0]) - direction) < 0 ? -1 : 1;
  turn(middle, root[0] + a * Math.cos(direction + side * bend), root[1] + a * Math.sin(direction + side * bend));
  turn(end, root[0] + d * Math.cos(direction), root[1] + d * Math.sin(direction));
}
function move(joint, x, y) {
  x = Math.min(width - 1, Math.max(0, x)); y = Math.min(height - 1, Math.max(0, y));
  if (parent[joint] < 0) shift(joint, x - body[joint][0], y - body[joint][1]);
  else if ([4, 7, 10, 13].includes(joint)) reach(joint, x, y);
  else turn(joint, x, y);
  draw();
}

const lines = [], dots = [];
svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
const make = (name, attributes) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  svg.appendChild(node);
  return node;
};
parent.forEach((p, j) => { if (p >= 0) lines[j] = make("line", { stroke: colours[j % colours.length] }); });
facts.joints.forEach((name, j) => {
  const small = j >= 14;
  const dot = make("circle", { r: small ? 3 : 6, tabindex: small ? -1 : 0, role: "button", "aria-label": name });
  dots[j] = dot;
  dot.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "title")).textContent = name;
  dot.addEventListener("pointerdown", (event) => { dot.setPointerCapture(event.pointerId); event.preventDefault(); dot.focus(); });
  dot.addEventListener("pointermove", (event) => {
    if (!dot.hasPointerCapture(event.pointerId)) return;
    const box = svg.getBoundingClientRect();
    move(j, (event.clientX - box.left) * width / box.width, (event.clientY - box.top) * height / box.height);
  });
  dot.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-4, 0], ArrowRight: [4, 0], ArrowUp: [0, -4], ArrowDown: [0, 4] }[event.key];
    if (!by) return;
    event.preventDefault();
    move(j, body[j][0] + by[0], body[j][1] + by[1]);
  });
});
function draw() {
  parent.forEach((p, j) => {
    if (p < 0) return;
    for (const [key, at, k] of [["x1", j, 0], ["y1", j, 1], ["x2", p, 0], ["y2", p, 1]]) lines[j].setAttribute(key, body[at][k]);
  });
  dots.forEach((dot, j) => { dot.setAttribute("cx", body[j][0]); dot.setAttribute("cy", body[j][1]); });
}
draw();

async function call(name, ...data) {
  const answer = await fetch(new URL(`gradio_api/run/${name}`, document.baseURI), {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ data }),
  });
  const content = await answer.json();
  if (!answer.ok) throw new Error(plain(content.error || content.detail || `the page answers ${answer.status}`));
  return content.data[0];
}
function plain(text) { return new DOMParser().parseFromString(String(text), "text/html").body.textContent; }
function say(text) { find(".state").textContent = text; }
function list(notes) {
  find("ul.notes").replaceChildren(...notes.slice(-4).map((text) => {
    const item = document.createElement("li");
    item.className = text.startsWith("warning") ? "warning" : "note";
    item.textContent = text;
    return item;
  }));
}
function running(on) {
  buttons.skeleton.disabled = buttons.camera.disabled = on;
  buttons.stop.disabled = !on;
  buttons.again.disabled = kind === "camera" && on;
}

async function begin(which) {
  kind = which; after = 0; waiting = []; list([]);
  running(true);
  try {
    if (kind === "camera") {
      if (!navigator.mediaDevices) throw new Error("this browser gives no camera to this page: open it as http://127.0.0.1, or over https");
      say("waits for the camera");
      stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 480 }, height: { ideal: 360 } } });
      eye.srcObject = stream;
      await eye.play();
      eye.hidden = false; picture.hidden = true; svg.style.display = "none";
    }
    say("begins: the model is loaded");
    room = (await call("live_start", kind)).room;
    clock = setInterval(exchange, 1000 / facts.fps);
    player = setInterval(show, 1000 / facts.fps);
  } catch (error) { finish(error.name === "NotAllowedError" ? "the camera was not allowed" : error.name === "NotFoundError" ? "there is no camera" : error.message); }
}
function pose() {
  if (kind === "skeleton") return { body: body.map((p) => [p[0], p[1], 1]) };
  const shown = document.createElement("canvas"), scale = Math.min(1, 480 / Math.max(eye.videoWidth, eye.videoHeight));
  if (!eye.videoWidth) return {};
  shown.width = Math.round(eye.videoWidth * scale); shown.height = Math.round(eye.videoHeight * scale);
  shown.getContext("2d").drawImage(eye, 0, 0, shown.width, shown.height);
  return { image: shown.toDataURL("image/jpeg", 0.8) };
}
async function exchange() {
  if (busy || !room) return;
  busy = true;
  const mine = room;
  try {
    const news = await call("live_exchange", mine, JSON.stringify({ after, ...pose() }));
    if (mine !== room) return;
    for (const [number, data] of news.frames) { after = number; waiting.push(data); }
    while (waiting.length > 3 * facts.fps) waiting.shift();
    list(news.notes);
    if (news.state === "ended") finish(news.reason || "it has ended");
    else if (news.state === "starting") say("begins: the model is loaded");
    else if (!after) say("begins: it warms up");
    else say(news.frames_per_second ? `running, ${news.frames_per_second.toFixed(1)} frames per second` : "running");
  } catch (error) { if (mine === room) finish(error.message); } finally { busy = false; }
}
function show() {
  const data = waiting.shift();
  if (!data) return;
  const image = new Image();
  image.onload = () => {
    canvas.width = image.width; canvas.height = image.height;
    canvas.getContext("2d").drawImage(image, 0, 0);
    canvas.dataset.frames = String(Number(canvas.dataset.frames || 0) + 1);
  };
  image.src = "data:image/jpeg;base64," + data;
}
function finish(text) {
  clearInterval(clock);
  setTimeout(((one) => () => clearInterval(one))(player), 4000);
  const mine = room;
  room = null;
  if (mine) call("live_stop", mine).catch(() => {});
  if (stream) stream.getTracks().forEach((track) => track.stop());
  stream = null; eye.srcObject = null; eye.hidden = true; picture.hidden = false; svg.style.display = "";
  kind = null;
  running(false);
  say(text);
}
buttons.skeleton.addEventListener("click", () => begin("skeleton"));
buttons.camera.addEventListener("click", () => begin("camera"));
buttons.stop.addEventListener("click", () => finish("stopped"));
buttons.again.addEventListener("click", () => { body = facts.body.map((p) => [...p]); draw(); });
buttons.again.disabled = false;
window.addEventListener("pagehide", () => { if (room) navigator.sendBeacon(new URL("gradio_api/run/live_stop", document.baseURI), new Blob([JSON.stringify({ data: [room] })], { type: "application/json" })); });
