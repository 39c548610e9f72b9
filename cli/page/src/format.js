// Numbers and words.
const round = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(value >= 1 ? 1 : 2)).replace(/\.0+$/, '');

export function rate(value) {
  if (!value) return '0/s';
  if (value >= 1e6) return `${round(value / 1e6)}M/s`;
  if (value >= 1e3) return `${round(value / 1e3)}k/s`;
  return value < 0.01 ? '<0.01/s' : `${round(value)}/s`;
}
export function time(ms) {
  if (ms == null) return '–';
  if (ms >= 10_000) return `${round(ms / 1000)} s`;
  return ms < 1 ? '<1 ms' : `${round(ms)} ms`;
}
export function bytes(value) {
  const units = ['B/s', 'kB/s', 'MB/s', 'GB/s'];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${round(value)} ${units[unit]}`;
}
export function share(value) {
  if (!value) return '0%';
  return value < 0.001 ? '<0.1%' : `${round(value * 100)}%`;
}
export function ago(seconds) {
  if (seconds < 2) return 'just now';
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min ago` : `${Math.round(seconds / 3600)} h ago`;
}
export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });

/** Host of a service as people say it: reviews.shop. */
export const host = (name) => name.replace(/\.svc\..*$/, '').replace(/\.svc$/, '');
export function nodeName(node) {
  if (node.kind === 'outside') return node.name || 'outside';
  return node.kind === 'service' ? host(node.name).split('.')[0] : node.name;
}

/** How an edge does: the first that applies. */
export function health(edge) {
  if (edge.refused > 0) return 'refused';
  const failed = edge.failed > 0 ? edge.failed / (edge.failed + edge.opened) : 0;
  const errors = Math.max(edge.errorShare, failed);
  if (errors >= 0.05) return 'bad';
  if (errors > 0) return 'warn';
  return edge.rate || edge.opened || edge.sent || edge.received ? 'ok' : 'idle';
}
export const HEALTH = { refused: 'refused by a policy', bad: 'failing', warn: 'some errors', ok: 'fine', idle: 'idle' };
export const MTLS = { all: 'mutual TLS', some: 'partly in plaintext', none: 'plaintext', unknown: 'not known' };
export const PROTOCOL = { http: 'HTTP', grpc: 'gRPC', tcp: 'TCP' };
/** How much goes on, for widths and order. */
export const volume = (edge) => edge.rate || edge.opened || 0;
export const callText = (edge) => (edge.rate ? rate(edge.rate) : edge.opened ? `${rate(edge.opened)} conn` : edge.sent + edge.received ? bytes(edge.sent + edge.received) : '');
