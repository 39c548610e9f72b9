// The list beside the graph, and what there is to say of one edge or node.
import { get } from './api.js';
import { line, spark } from './chart.js';
import { h } from './dom.js';
import { HEALTH, MTLS, PROTOCOL, ago, bytes, callText, health, host, nodeName, rate, share, time, volume } from './format.js';

const ORDER = { refused: 0, bad: 1, warn: 2, ok: 3, idle: 4 };
export const sorted = (edges) => [...edges].sort((a, b) => ORDER[health(a)] - ORDER[health(b)] || volume(b) - volume(a) || a.id - b.id);

export function list(container, state, choose) {
  const focused = container.contains(document.activeElement) ? document.activeElement.dataset.edge : null;
  const rows = sorted(state.edges).map((edge) => {
    const how = health(edge);
    return h('li', {}, h('button', {
      type: 'button', class: `row ${how}`, 'data-edge': edge.id, 'aria-current': state.chosen?.edge === edge.id && 'true',
      'aria-label': `${state.name(edge.source)} to ${state.name(edge.target)}: ${HEALTH[how]}, ${callText(edge) || 'nothing now'}`,
      onclick: () => choose({ edge: edge.id }),
    },
    h('i', { class: `dot ${how}` }), h('span', { class: 'ends' }, h('b', {}, state.name(edge.source)), ' → ', h('b', {}, state.name(edge.target))),
    h('span', { class: 'what' }, how === 'ok' || how === 'idle' ? callText(edge) || 'idle' : how === 'refused' ? 'refused' : `${share(edge.errorShare || 1)} err`),
    state.sparks[edge.id] ? spark(state.sparks[edge.id]) : h('span')));
  });
  container.replaceChildren(h('h2', {}, 'Connections ', h('span', { class: 'count' }, String(rows.length))), rows.length ? h('ul', { class: 'rows' }, rows) : h('p', { class: 'quiet' }, state.query ? 'Nothing matches.' : 'Nobody has talked yet.'));
  if (focused) container.querySelector(`[data-edge="${focused}"]`)?.focus();
}

const fact = (name, value, note) => value == null || value === '' ? null : h('div', { class: 'fact' }, h('dt', {}, name), h('dd', {}, value, note ? h('small', {}, note) : null));
const copyable = (command) => {
  const button = h('button', { type: 'button', class: 'copy', onclick: async () => { await navigator.clipboard?.writeText(command); button.textContent = 'copied'; } }, 'copy');
  return h('div', { class: 'command' }, h('code', {}, command), button);
};

function refusals(edge, now) {
  if (!edge.refusals.length) return null;
  const items = edge.refusals.map((refusal) => {
    const [namespace, name] = refusal.policy ? refusal.policy.split('/') : [];
    const what = refusal.method ? `${refusal.method} ${refusal.path}` : refusal.requests ? 'requests' : 'connection';
    return h('li', {},
      h('p', {}, refusal.policy ? ['denied by ', h('b', {}, refusal.policy)] : [h('b', {}, 'no ALLOW policy matches')], ` · ${ago(now - refusal.last)} · ${refusal.count} in all`),
      h('p', { class: 'quiet' }, `${what}${refusal.port ? `, port ${refusal.port}` : ''}, by the ${refusal.by} · from ${refusal.caller}`),
      name ? [h('p', { class: 'quiet' }, `Whoever looks after namespace ${namespace} can say why:`), copyable(`kubectl -n ${namespace} get authorizationpolicy ${name} -o yaml`)] : null);
  });
  return [h('h3', {}, 'Last refusals'), h('ul', { class: 'refusals' }, items)];
}

function codes(edge) {
  const all = Object.entries(edge.codes);
  if (!all.length && !Object.keys(edge.flags).length) return null;
  const most = Math.max(...all.map(([, value]) => value), 1e-9);
  return [h('h3', {}, 'Answers'), h('ul', { class: 'codes' },
    all.map(([code, value]) => {
      const kind = code === '0' || code >= 500 ? 'bad' : code >= 400 ? 'warn' : 'ok';
      const bar = h('meter', { class: kind, min: 0, max: most, value, 'aria-hidden': 'true' });
      return h('li', {}, h('span', {}, code === '0' ? 'no answer' : code), bar, h('span', { class: 'number' }, rate(value)));
    }),
    Object.entries(edge.flags).map(([flag, value]) => h('li', {}, h('span', {}, flag), h('span', { class: 'quiet' }, 'response flag'), h('span', { class: 'number' }, rate(value)))))];
}

function explanation(edge, container) {
  const out = h('div', { class: 'steps', 'aria-live': 'polite' });
  const button = h('button', { type: 'button', onclick: async () => {
    button.disabled = true;
    out.replaceChildren(h('p', { class: 'quiet' }, 'Reading objects and asking the proxies on the way…'));
    try {
      const answer = await get('/api/explain', { edge: edge.id });
      const named = (object) => (object ? ` ${object.kind} ${object.namespace ? `${object.namespace}/` : ''}${object.name}` : '');
      const steps = answer.steps.map((step) => h('li', {}, h('b', {}, step.step), ': ', step.why, h('span', { class: 'quiet' }, named(step.object))));
      out.replaceChildren(h('p', {}, h('b', {}, answer.verdict), answer.summary ? `: ${answer.summary}` : ''), h('ol', {}, steps));
    } catch (error) {
      out.replaceChildren(h('p', { class: 'quiet' }, error.message));
    }
    button.disabled = false;
  } }, 'Explain this call');
  container.append(h('h3', {}, 'Why'), button, out);
  if (edge.sourcePrincipal && edge.service) container.append(copyable(`karst explain ${edge.sourcePrincipal} ${edge.service}`));
}

export function edgeDetail(container, state, edge, history, close) {
  const how = health(edge), now = state.at / 1000;
  const kept = container.dataset.edge === String(edge.id) ? container.querySelector('.why') : null;
  const why = kept ?? h('div', { class: 'why' });
  if (!kept) explanation(edge, why);
  const focus = container.contains(document.activeElement) ? document.activeElement.className : null;
  container.dataset.edge = edge.id;
  const failing = edge.opened + edge.failed ? edge.failed / (edge.opened + edge.failed) : 0;
  container.replaceChildren(
    h('div', { class: 'top' }, h('h2', {}, state.name(edge.source), h('span', { class: 'arrow' }, ' → '), state.name(edge.target)), h('button', { type: 'button', class: 'icon close', 'aria-label': 'Close', onclick: close }, '×')),
    h('p', { class: 'tags' }, h('span', { class: `tag ${how}` }, HEALTH[how]), h('span', { class: `tag ${edge.mtls === 'none' || edge.mtls === 'some' ? 'warn' : ''}` }, MTLS[edge.mtls] === 'not known' ? 'mutual TLS not known' : MTLS[edge.mtls]), h('span', { class: 'tag' }, PROTOCOL[edge.protocol])),
    h('dl', { class: 'facts' },
      edge.rate ? [fact('Requests', rate(edge.rate)), fact('Errors', share(edge.errorShare)), fact('4xx', share(edge.clientErrorShare)), fact('p50', time(edge.p50)), fact('p99', time(edge.p99))] : null,
      edge.opened || edge.failed ? [fact('Connections', rate(edge.opened)), fact('Not opened', failing ? share(failing) : '0%')] : null,
      edge.sent || edge.received ? [fact('To the client', bytes(edge.sent)), fact('From the client', bytes(edge.received))] : null,
      edge.refused ? fact('Refused', rate(edge.refused)) : null),
    ...[refusals(edge, now)].flat().filter(Boolean),
    h('h3', {}, 'The last hour'), line(history, 96, 'Calls in the last hour'),
    ...[codes(edge)].flat().filter(Boolean),
    h('h3', {}, 'Who'),
    h('dl', { class: 'who' }, fact('Service', host(edge.service)), fact('Caller', edge.sourcePrincipal || 'no identity proven'), fact('Called', edge.destinationPrincipal)),
    why);
  container.hidden = false;
  if (focus) container.querySelector(`.${focus.split(' ').join('.')}`)?.focus();
}

export function nodeDetail(container, state, node, choose, close) {
  delete container.dataset.edge;
  const side = (title, edges, other) => edges.length ? [h('h3', {}, title), h('ul', { class: 'rows' }, sorted(edges).map((edge) => {
    const how = health(edge);
    return h('li', {}, h('button', { type: 'button', class: `row short ${how}`, 'data-edge': edge.id, onclick: () => choose({ edge: edge.id }) },
      h('i', { class: `dot ${how}` }), h('span', { class: 'ends' }, h('b', {}, state.name(edge[other]))), h('span', { class: 'what' }, how === 'refused' ? 'refused' : how === 'bad' || how === 'warn' ? `${share(edge.errorShare)} err` : callText(edge) || 'idle')));
  }))] : [];
  const into = state.edges.filter((edge) => edge.target === node.id), out = state.edges.filter((edge) => edge.source === node.id);
  const sum = (edges) => edges.reduce((total, edge) => total + edge.rate, 0);
  const services = [...new Set(into.map((edge) => host(edge.service)).filter(Boolean))];
  const focus = container.contains(document.activeElement) ? document.activeElement.dataset.edge ?? 'close' : null;
  container.replaceChildren(
    h('div', { class: 'top' }, h('h2', {}, nodeName(node)), h('button', { type: 'button', class: 'icon close', 'aria-label': 'Close', onclick: close }, '×')),
    h('p', { class: 'tags' }, h('span', { class: 'tag' }, node.kind), node.namespace ? h('span', { class: 'tag' }, node.namespace) : null),
    h('dl', { class: 'facts' }, fact('Requests in', rate(sum(into))), fact('Requests out', rate(sum(out)))),
    services.length ? h('p', { class: 'quiet' }, `Called as ${services.join(', ')}`) : '',
    ...side('Called by', into, 'source'), ...side('Calls', out, 'target'));
  container.hidden = false;
  if (focus) (container.querySelector(`[data-edge="${focus}"]`) ?? container.querySelector('.close')).focus();
}
