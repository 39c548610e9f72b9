// The graph: cytoscape draws, dagre lays out once; later nodes come beside their neighbours, so that nothing jumps.
import cytoscape from 'cytoscape';
import dagre from 'cytoscape-dagre';
import { callText, health, nodeName, share, time, volume } from './format.js';

cytoscape.use(dagre);

const SHAPES = { workload: 'round-rectangle', service: 'ellipse', gateway: 'round-hexagon', waypoint: 'round-diamond', outside: 'round-rectangle' };
const MARKS = { workload: '', service: 'service', gateway: 'gateway', waypoint: 'waypoint', outside: 'outside' };
/** More nodes than this: labels of edges only where something is wrong, or near what is chosen. */
const MANY = 60;

const colours = () => {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(`--${name}`).trim();
};

function style() {
  const c = colours();
  return [
    { selector: 'node', style: {
      shape: 'data(shape)', width: 'data(width)', height: 'data(height)', 'background-color': c('node'), 'border-width': 1.2, 'border-color': c('node-line'),
      label: 'data(label)', color: c('text'), 'font-size': 14, 'font-family': 'system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif',
      'text-valign': 'center', 'text-halign': 'center', 'text-wrap': 'wrap', 'line-height': 1.25, 'text-max-width': 190,
    } },
    { selector: 'node[kind = "service"]', style: { 'background-color': c('service'), 'border-color': c('service-line') } },
    { selector: 'node[kind = "gateway"]', style: { 'background-color': c('gateway'), 'border-color': c('gateway-line') } },
    { selector: 'node[kind = "waypoint"]', style: { 'background-color': c('waypoint'), 'border-color': c('waypoint-line') } },
    { selector: 'node[kind = "outside"]', style: { 'background-color': c('ground'), 'border-style': 'dashed' } },
    { selector: 'node.bad', style: { 'border-color': c('bad'), 'border-width': 2.2 } },
    { selector: 'edge', style: {
      'curve-style': 'bezier', 'control-point-step-size': 34, width: 'data(width)', 'line-color': 'data(colour)', 'target-arrow-color': 'data(colour)',
      'target-arrow-shape': 'triangle', 'arrow-scale': 0.85, label: 'data(label)', 'font-size': 12, color: c('quiet'),
      'font-family': 'system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif', 'text-background-color': c('ground'), 'text-background-opacity': 0.9,
      'text-background-padding': 2, 'text-background-shape': 'roundrectangle', 'text-wrap': 'wrap', 'min-zoomed-font-size': 7,
    } },
    { selector: 'edge.bad, edge.refused', style: { color: c('text') } },
    { selector: 'edge.refused', style: { 'line-style': 'dashed', 'line-dash-pattern': [7, 5] } },
    { selector: 'edge.idle, edge.quiet', style: { opacity: 0.45 } },
    { selector: 'edge.quiet.chosen', style: { opacity: 1 } },
    { selector: '.faded', style: { opacity: 0.16 } },
    { selector: ':selected, .chosen', style: { 'overlay-color': c('accent'), 'overlay-opacity': 0.16, 'overlay-padding': 5 } },
    { selector: 'node:selected', style: { 'border-color': c('accent'), 'border-width': 2.4 } },
  ];
}

const measure = document.createElement('canvas').getContext('2d');
function nodeData(node, all) {
  const name = nodeName(node);
  const second = all ? node.namespace || MARKS[node.kind] : MARKS[node.kind];
  const label = second && second !== name ? `${name}\n${second}` : name;
  measure.font = '14px system-ui, "DejaVu Sans", sans-serif';
  const text = Math.min(190, Math.max(...label.split('\n').map((part) => measure.measureText(part).width)));
  const wide = { service: 1.35, gateway: 1.3, waypoint: 1.75 }[node.kind] ?? 1;
  const tall = { waypoint: 1.7, service: 1.15 }[node.kind] ?? 1;
  return { id: `n:${node.id}`, node: node.id, kind: node.kind, shape: SHAPES[node.kind], label, width: Math.max(64, (text + 26) * wide), height: (label.includes('\n') ? 48 : 36) * tall };
}

const part = (edge) => (edge.rate > edge.refused * 1.05 ? `${share(edge.refused / edge.rate)} ` : '');

function edgeLabel(edge, state) {
  if (state === 'refused') return `${part(edge)}refused${edge.refusals[0]?.policy ? `\n${edge.refusals[0].policy.split('/').at(-1)}` : ''}`;
  const parts = [callText(edge)];
  if (edge.errorShare > 0) parts.push(`${share(edge.errorShare)} errors`);
  else if (edge.p50 != null) parts.push(time(edge.p50));
  return parts.filter(Boolean).join(' · ');
}

export class GraphView {
  constructor(container, choose) {
    this.cy = cytoscape({ container, style: style(), minZoom: 0.08, maxZoom: 2.5, boxSelectionEnabled: false, selectionType: 'single', textureOnViewport: false });
    this.laidOut = false;
    this.cy.on('tap', 'edge', (event) => choose({ edge: event.target.data('edge') }));
    this.cy.on('tap', 'node', (event) => choose({ node: event.target.data('node') }));
    this.cy.on('tap', (event) => { if (event.target === this.cy) choose(null); });
    this.cy.on('mouseover', 'node, edge', () => { container.classList.add('hand'); });
    this.cy.on('mouseout', 'node, edge', () => { container.classList.remove('hand'); });
  }

  restyle() {
    this.cy.style(style());
    this.last && this.show(this.last);
  }

  /** Takes in a reading: what there is stays where it is. */
  show({ nodes, edges, allNamespaces }) {
    this.last = { nodes, edges, allNamespaces };
    const { cy } = this, c = colours();
    const many = nodes.length > MANY;
    const fresh = [];
    cy.batch(() => {
      const wanted = new Set([...nodes.map((node) => `n:${node.id}`), ...edges.map((edge) => `e:${edge.id}`)]);
      cy.elements().filter((element) => !wanted.has(element.id())).remove();
      for (const node of nodes) {
        const data = nodeData(node, allNamespaces);
        const known = cy.getElementById(data.id);
        if (known.nonempty()) known.data(data);
        else fresh.push(cy.add({ group: 'nodes', data, position: { x: 0, y: 0 } }));
      }
      const bad = new Set();
      for (const edge of edges) {
        const state = health(edge);
        if (state === 'bad') bad.add(edge.target);
        const label = many && (state === 'ok' || state === 'idle') ? '' : edgeLabel(edge, state);
        const colour = c({ refused: 'bad', bad: 'bad', warn: 'warn', ok: 'ok', idle: 'node-line' }[state]);
        const width = Math.min(7, 1.4 + Math.log10(1 + volume(edge) * 4) * 1.3) * (many && state === 'ok' ? 0.5 : 1);
        const data = { id: `e:${edge.id}`, edge: edge.id, source: `n:${edge.source}`, target: `n:${edge.target}`, label, colour, width, mtls: edge.mtls, volume: volume(edge), state };
        const known = cy.getElementById(data.id);
        const element = known.nonempty() ? known.data(data) : cy.add({ group: 'edges', data });
        element.classes(`${state}${many && state === 'ok' ? ' quiet' : ''}${element.hasClass('faded') ? ' faded' : ''}${element.hasClass('chosen') ? ' chosen' : ''}`);
      }
      cy.nodes().forEach((node) => { node.toggleClass('bad', bad.has(node.data('node'))); });
    });
    if (!this.laidOut && nodes.length) this.layout();
    else if (fresh.length) this.place(fresh);
  }

  layout() {
    const { cy } = this;
    if (!cy.nodes().length) return;
    this.laidOut = true;
    if (cy.nodes().length > MANY) this.columns();
    else {
      cy.layout({ name: 'dagre', rankDir: 'LR', nodeSep: 38, rankSep: 132, edgeSep: 12, ranker: 'network-simplex', fit: true, padding: 46, animate: false }).run();
    }
    if (cy.zoom() > 1.25) { cy.zoom(1.25); cy.center(); }
  }

  /** Many nodes: callers left of whom they call, as far as there is no circle, in columns that fill the stage. */
  columns() {
    const { cy } = this;
    const depth = new Map(), nodes = cy.nodes().toArray();
    let wave = nodes.filter((node) => node.incomers('edge').empty());
    if (!wave.length) wave = [nodes.reduce((most, node) => (node.outdegree() > most.outdegree() ? node : most))];
    for (let at = 0; wave.length; at += 1) {
      for (const node of wave) depth.set(node.id(), at);
      wave = [...new Set(wave.flatMap((node) => node.outgoers('node').toArray()))].filter((node) => !depth.has(node.id()));
    }
    const layers = [];
    for (const node of nodes) (layers[depth.get(node.id()) ?? 0] ??= []).push(node);
    const wide = 196, high = 62, aspect = cy.width() / Math.max(cy.height(), 1);
    const rows = Math.max(6, Math.ceil(Math.sqrt((nodes.length * wide) / high / aspect)));
    const spot = new Map();
    let column = 0;
    for (const layer of layers.filter(Boolean)) {
      // Near those who call it: what is called from above is above.
      const middle = (node) => { const from = node.incomers('node').toArray().filter((other) => spot.has(other.id())); return from.length ? from.reduce((sum, other) => sum + spot.get(other.id()).y, 0) / from.length : 0; };
      const order = layer.map((node) => [middle(node), node]).sort((one, other) => one[0] - other[0] || one[1].id().localeCompare(other[1].id()));
      const count = Math.ceil(layer.length / rows), each = Math.ceil(layer.length / count);
      order.forEach(([, node], i) => spot.set(node.id(), { x: (column + (i % count)) * wide, y: (Math.floor(i / count) - (each - 1) / 2) * high + ((i % count) % 2) * 20 }));
      column += count + 0.7;
    }
    cy.nodes().positions((node) => spot.get(node.id()));
    cy.fit(undefined, 30);
  }

  /** Nodes that come later: beside those that they talk to; without any, below all. */
  place(fresh) {
    const waiting = new Set(fresh.map((node) => node.id()));
    const settled = (node) => !waiting.has(node.id());
    const box = this.cy.nodes().filter(settled).boundingBox();
    let below = 0;
    // Callers first, so that whom they call has a place beside them.
    for (const node of [...fresh].sort((one, other) => one.indegree() - other.indegree())) {
      const from = node.incomers('node').filter(settled), to = node.outgoers('node').filter(settled);
      const near = from.nonempty() ? from : to;
      const mean = (axis) => near.reduce((sum, other) => sum + other.position(axis), 0) / near.length;
      const start = near.empty() ? { x: box.x1 + 60, y: box.y2 + 70 + 70 * below++ } : { x: mean('x') + (from.nonempty() ? 250 : -250), y: mean('y') };
      const spot = { ...start };
      const taken = () => this.cy.nodes().some((other) => other !== node && settled(other) && Math.abs(other.position('x') - spot.x) < 130 && Math.abs(other.position('y') - spot.y) < 54);
      for (let step = 1; taken() && step < 60; step += 1) spot.y = start.y + Math.ceil(step / 2) * 58 * (step % 2 ? 1 : -1);
      node.position(spot);
      waiting.delete(node.id());
    }
    if (this.cy.nodes().length <= MANY) this.cy.animate({ fit: { eles: this.cy.elements(), padding: 46 } }, { duration: 160 });
  }

  /** Fades what does not match. */
  filter(matches, chosen) {
    this.cy.batch(() => {
      // Among many, what is chosen is seen only if the others step back.
      if (!matches && chosen && this.cy.nodes().length > MANY) {
        const element = this.cy.getElementById(chosen.node ? `n:${chosen.node}` : `e:${chosen.edge}`);
        const near = chosen.node ? element.closedNeighborhood() : element.union(element.connectedNodes());
        this.cy.elements().addClass('faded');
        near.removeClass('faded');
        return;
      }
      const shown = matches ? this.cy.nodes().filter((node) => matches(node.data('node'))).closedNeighborhood() : this.cy.elements();
      this.cy.elements().removeClass('faded');
      if (matches) this.cy.elements().difference(shown).addClass('faded');
    });
  }

  choose(chosen) {
    this.cy.elements().unselect().removeClass('chosen');
    if (!chosen) return;
    const element = this.cy.getElementById(chosen.node ? `n:${chosen.node}` : `e:${chosen.edge}`);
    element.select();
    if (chosen.node) element.connectedEdges().addClass('chosen');
    if (element.nonempty() && !inside(element.boundingBox(), this.cy.extent())) this.cy.animate({ center: { eles: element } }, { duration: 160 });
  }

  zoom(by) {
    this.cy.zoom({ level: this.cy.zoom() * by, renderedPosition: { x: this.cy.width() / 2, y: this.cy.height() / 2 } });
  }
}

const inside = (box, extent) => box.x1 < extent.x2 && box.x2 > extent.x1 && box.y1 < extent.y2 && box.y2 > extent.y1;
