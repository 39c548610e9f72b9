// The same as a table, for those who cannot see graphs, and for sorting.
import { h } from './dom.js';
import { HEALTH, MTLS, PROTOCOL, bytes, health, host, rate, share, time, volume } from './format.js';
import { sorted } from './panel.js';

const COLUMNS = [
  ['From', (edge, name) => name(edge.source)], ['To', (edge, name) => name(edge.target)], ['Service', (edge) => host(edge.service)],
  ['State', (edge) => HEALTH[health(edge)]], ['Calls', (edge) => rate(volume(edge)), volume], ['Errors', (edge) => edge.rate ? share(edge.errorShare) : '–', (edge) => edge.errorShare],
  ['p50', (edge) => time(edge.p50), (edge) => edge.p50 ?? -1], ['p99', (edge) => time(edge.p99), (edge) => edge.p99 ?? -1],
  ['Bytes', (edge) => bytes(edge.sent + edge.received), (edge) => edge.sent + edge.received], ['Protocol', (edge) => PROTOCOL[edge.protocol]], ['TLS', (edge) => MTLS[edge.mtls]],
  ['Last refusal', (edge) => edge.refusals[0] ? edge.refusals[0].policy || 'no policy allows it' : ''],
];
let by = null, down = true;

export function table(container, state, choose) {
  const focused = container.contains(document.activeElement) ? { ...document.activeElement.dataset } : null;
  const rows = sorted(state.edges);
  if (by != null) {
    const [, text, number] = COLUMNS[by];
    const key = (edge) => (number ? number(edge) : text(edge, state.name));
    rows.sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (down ? -1 : 1));
  }
  const sort = (i) => { down = by === i ? !down : Boolean(COLUMNS[i][2]); by = i; table(container, state, choose); };
  container.replaceChildren(h('table', {},
    h('caption', {}, 'Who talks to whom, in the last 10 seconds. Enter opens a row.'),
    h('thead', {}, h('tr', {}, COLUMNS.map(([title, , number], i) => h('th', { scope: 'col', class: number && 'number', 'aria-sort': by === i ? (down ? 'descending' : 'ascending') : null },
      h('button', { type: 'button', 'data-sort': i, onclick: () => sort(i) }, title))))),
    h('tbody', {}, rows.map((edge) => h('tr', { class: health(edge), 'aria-current': state.chosen?.edge === edge.id && 'true', onclick: () => choose({ edge: edge.id }) },
      COLUMNS.map(([title, text, number], i) => i === 0
        ? h('th', { scope: 'row' }, h('button', { type: 'button', class: 'link', 'data-edge': edge.id }, text(edge, state.name)))
        : h('td', { class: number && 'number' }, title === 'State' ? h('span', { class: `tag ${health(edge)}` }, text(edge)) : text(edge, state.name))))))));
  if (focused?.edge) container.querySelector(`[data-edge="${focused.edge}"]`)?.focus();
  if (focused?.sort) container.querySelector(`[data-sort="${focused.sort}"]`)?.focus();
}
