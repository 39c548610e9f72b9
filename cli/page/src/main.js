// Reads every 2 s, and shows.
import { get, login } from './api.js';
import { line } from './chart.js';
import { $, h } from './dom.js';
import { health, nodeName, rate, share } from './format.js';
import { GraphView } from './graph.js';
import { overlay } from './overlay.js';
import { edgeDetail, list, nodeDetail } from './panel.js';
import { table } from './table.js';
import { theme } from './theme.js';

const EVERY = 2000;
const state = { nodes: [], edges: [], byId: new Map(), chosen: null, query: '', namespace: null, hops: false, sparks: {}, total: { points: [] }, at: 0, view: 'graph', history: null };
let graph, redraw, all = null, known = new Set(), round = 0;

state.name = (id) => {
  const node = state.byId.get(id);
  if (!node) return id;
  const name = nodeName(node);
  return !state.namespace && node.namespace && state.doubled.has(name) ? `${name}.${node.namespace}` : name;
};
state.doubled = new Set();

function take(answer) {
  all = answer;
  state.at = answer.at;
  state.byId = new Map(answer.nodes.map((node) => [node.id, node]));
  const names = answer.nodes.map(nodeName);
  state.doubled = new Set(names.filter((name, i) => names.indexOf(name) !== i));
  for (const node of answer.nodes) if (node.namespace) known.add(node.namespace);
  if (state.namespace) known.add(state.namespace);
  const select = $('namespace');
  const wanted = [...known].sort();
  if (select.options.length !== wanted.length + 1) {
    select.replaceChildren(h('option', { value: '' }, 'All namespaces'), ...wanted.map((name) => h('option', { value: name }, name)));
    select.value = state.namespace;
  }
}

const matches = (node) => { const query = state.query.toLowerCase(); return `${nodeName(node)} ${node.namespace} ${node.name}`.toLowerCase().includes(query); };

function show() {
  if (!all) return;
  state.edges = all.edges.filter((edge) => state.hops || !edge.hop);
  const used = new Set(state.edges.flatMap((edge) => [edge.source, edge.target]));
  state.nodes = all.nodes.filter((node) => used.has(node.id));
  const shown = { ...state };
  if (state.query) {
    const hits = new Set(state.nodes.filter(matches).map((node) => node.id));
    shown.edges = state.edges.filter((edge) => hits.has(edge.source) || hits.has(edge.target));
  }
  if (state.view === 'graph') {
    graph.show({ nodes: state.nodes, edges: state.edges, allNamespaces: !state.namespace });
    graph.filter(state.query ? (id) => { const node = state.byId.get(id); return node && matches(node); } : null, state.chosen);
    redraw();
  } else table($('table'), shown, choose);
  list($('list'), shown, choose);
  detail();
  totals();
  const empty = $('empty');
  empty.hidden = state.edges.length > 0;
  empty.textContent = all.reading.read ? 'No calls yet. Calls appear here within a few seconds.' : 'No proxy could be read yet.';
}

function totals() {
  const calls = state.edges.filter((edge) => !edge.hop);
  const requests = calls.reduce((sum, edge) => sum + edge.rate, 0);
  const errors = calls.reduce((sum, edge) => sum + edge.rate * edge.errorShare, 0);
  const refused = calls.reduce((sum, edge) => sum + edge.refused, 0);
  const plain = calls.filter((edge) => edge.mtls === 'none' || edge.mtls === 'some').length;
  const box = (name, value, kind) => h('div', { class: `total ${kind ?? ''}` }, h('b', {}, value), h('span', {}, name));
  const failing = requests ? errors / requests : 0;
  $('totals').replaceChildren(box('requests', rate(requests)), box('errors', share(failing), failing >= 0.05 ? 'bad' : failing > 0 ? 'warn' : ''), box('refused', rate(refused), refused ? 'bad' : ''), box('in plaintext', String(plain), plain ? 'warn' : ''));
  $('timeline').replaceChildren(line(state.total, 92, 'Calls in the last hour'));
}

function detail() {
  const box = $('detail');
  const chosen = state.chosen;
  $('side').classList.toggle('open', Boolean(chosen));
  $('list').hidden = Boolean(chosen);
  const edge = chosen?.edge != null && all.edges.find((edge) => edge.id === chosen.edge);
  const node = chosen?.node != null && state.byId.get(chosen.node);
  if (edge) edgeDetail(box, state, edge, state.history ?? { points: [] }, () => choose(null));
  else if (node) nodeDetail(box, state, node, choose, () => choose(null));
  else { box.hidden = true; box.replaceChildren(); delete box.dataset.edge; }
}

async function choose(chosen) {
  const before = state.chosen;
  state.chosen = chosen;
  state.history = null;
  graph.choose(chosen);
  show();
  if (chosen) $('detail').querySelector('.close')?.focus({ preventScroll: true });
  else if (before?.edge != null) (document.querySelector(`#list [data-edge="${before.edge}"]`) ?? $('list')).focus({ preventScroll: true });
  // What there is to say is said at once; its last hour comes when it has been read.
  if (chosen?.edge != null) { await read_history(); if (state.chosen === chosen) refresh(); }
}

async function read_history() {
  const { chosen } = state;
  let history = null;
  try { history = await get('/api/history', { edge: chosen.edge }); } catch { /* without it */ }
  if (state.chosen === chosen) state.history = history;
}

// What a pointer has gone down on stays there until it is up: else its click is nobody's.
const HOLD = 5000;
let down = -HOLD, late = false;
const refresh = () => { late = performance.now() - down < HOLD; if (!late) show(); };
const up = () => setTimeout(() => { down = -HOLD; if (late) refresh(); });

async function read() {
  try {
    const answer = await get('/api/graph', { namespace: state.namespace });
    if (state.namespace == null) { state.namespace = answer.start ?? ''; if (answer.start) return await read(); }
    take(answer);
    if (round % 5 === 0) ({ total: state.total, sparks: state.sparks } = await get('/api/history', { namespace: state.namespace }));
    if (state.chosen?.edge != null) await read_history();
    round += 1;
    const { read: count, unread, took } = answer.reading;
    const status = $('status');
    status.className = unread.length ? 'warn' : 'live';
    const text = `${count} ${count === 1 ? 'proxy' : 'proxies'}${unread.length ? `, ${unread.length} not read` : ''}${took > 2500 ? `, every ${Math.round(took / 1000)} s` : ''}`;
    if (status.textContent !== text) status.textContent = text;
    status.title = unread.map((one) => `${one.name}: ${one.why}`).join('\n') || answer.cluster;
    refresh();
  } catch (error) {
    const status = $('status');
    status.className = 'bad';
    status.textContent = error.status === 401 ? error.message : `not connected: is karst dashboard still running?`;
    status.title = error.message;
    if (error.status === 401 && !all) { $('empty').hidden = false; $('empty').textContent = error.message; }
  }
}

function view(name) {
  state.view = name;
  $('stage').hidden = name !== 'graph';
  $('table').hidden = name !== 'table';
  for (const each of ['graph', 'table']) $(`view-${each}`).setAttribute('aria-pressed', String(each === name));
  if (name === 'graph') graph.cy.resize();
  show();
}

/** Arrows move through what has the focus: the list, or the table's rows. */
function move(by) {
  const rows = [...(document.activeElement.closest('#table, #detail, #list') ?? (state.view === 'table' ? $('table') : $('list'))).querySelectorAll('[data-edge]')];
  if (!rows.length) return;
  const at = rows.indexOf(document.activeElement);
  rows[at < 0 ? 0 : Math.min(rows.length - 1, Math.max(0, at + by))].focus();
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $('keys').open) return;
  const typing = event.target.matches('input, select');
  const done = () => event.preventDefault();
  if (event.key === 'Escape') {
    if (event.target.id === 'search' && state.query) { $('search').value = ''; search(''); } else if (event.target.id === 'search') $('list').focus();
    else choose(null);
    return done();
  }
  if (event.target.id === 'search' && event.key === 'ArrowDown') { $('list').querySelector('[data-edge]')?.focus(); return done(); }
  if (typing) return;
  const act = { '/': () => $('search').focus(), ArrowDown: () => move(1), ArrowUp: () => move(-1), g: () => view('graph'), t: () => view('table'), r: () => graph.layout(), '?': () => $('keys').showModal() }[event.key];
  if (act) { act(); done(); }
}

function search(query) {
  state.query = query.trim();
  show();
}

graph = new GraphView($('graph'), choose);
redraw = overlay($('overlay'), graph.cy);
theme($('theme'), () => { graph.restyle(); show(); });
$('search').addEventListener('input', (event) => search(event.target.value));
$('namespace').addEventListener('change', async (event) => { state.namespace = event.target.value; state.chosen = null; round = 0; graph.laidOut = false; await read(); });
$('hops').addEventListener('change', (event) => { state.hops = event.target.checked; show(); });
$('view-graph').addEventListener('click', () => view('graph'));
$('view-table').addEventListener('click', () => view('table'));
$('zoom-in').addEventListener('click', () => graph.zoom(1.3));
$('zoom-out').addEventListener('click', () => graph.zoom(1 / 1.3));
$('fit').addEventListener('click', () => graph.layout());
$('help').addEventListener('click', () => $('keys').showModal());
document.addEventListener('keydown', keys);
document.addEventListener('pointerdown', () => { down = performance.now(); }, true);
for (const end of ['pointerup', 'pointercancel']) document.addEventListener(end, up, true);

try {
  await login();
} catch (error) {
  $('status').textContent = error.message;
}
for (;;) {
  if (!document.hidden || !all) await read();
  await new Promise((done) => setTimeout(done, EVERY));
}
