// Time lines, as SVG.
import { h, s } from './dom.js';
import { clock, rate, time, share } from './format.js';

const path = (values, x, y) => values.map((value, i) => `${i ? 'L' : 'M'}${x(i).toFixed(1)} ${y(value).toFixed(1)}`).join('');

export function spark(values, width = 48, height = 18) {
  const most = Math.max(...values, 1e-9);
  const x = (i) => (i / Math.max(values.length - 1, 1)) * width;
  const y = (value) => height - 1.5 - (value / most) * (height - 3);
  return s('svg', { class: 'spark', viewBox: `0 0 ${width} ${height}`, width, height, 'aria-hidden': 'true' }, s('path', { d: path(values, x, y) }));
}

/** One hour: an area of calls, the errors in it, refusals; a pointer reads it out. */
export function line(history, height, label) {
  const width = 720, low = 15, points = history.points;
  const box = h('div', { class: 'chart' });
  if (points.length < 2) {
    box.append(h('p', { class: 'quiet' }, 'The time line begins with this page: a point every 10 s.'));
    return box;
  }
  const end = points.at(-1).at, begin = Math.min(points[0].at, end - 600);
  const calls = (point) => point.rate || point.opened;
  const most = Math.max(...points.map((point) => Math.max(calls(point), point.refused)), 0.1);
  const x = (i) => ((points[i].at - begin) / (end - begin)) * width;
  const y = (value) => height - low - (value / most) * (height - low - 12);
  const area = (values) => `${path(values, x, y)}L${x(points.length - 1)} ${y(0)}L${x(0)} ${y(0)}Z`;
  const svg = s('svg', { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': label });
  svg.append(
    s('line', { class: 'axis', x1: 0, x2: width, y1: y(0), y2: y(0) }),
    s('path', { class: 'area', d: area(points.map(calls)) }),
    s('path', { class: 'calls', d: path(points.map(calls), x, y) }),
    s('path', { class: 'errors', d: area(points.map((point) => point.errors)) }),
  );
  if (points.some((point) => point.refused > 0)) svg.append(s('path', { class: 'refusals', d: points.map((point, i) => (point.refused > 0 || points[i - 1]?.refused > 0 ? `${points[i - 1]?.refused > 0 || i === 0 ? (i ? 'L' : 'M') : 'M'}${x(i).toFixed(1)} ${y(point.refused).toFixed(1)}` : '')).join('') }));
  const mark = s('line', { class: 'mark', y1: 4, y2: height - low, x1: -9, x2: -9 });
  svg.append(mark);
  const say = h('output', { class: 'readout' });
  const rest = () => { mark.setAttribute('x1', -9); mark.setAttribute('x2', -9); say.textContent = ''; };
  svg.addEventListener('pointermove', (event) => {
    const area = svg.getBoundingClientRect();
    const at = begin + ((event.clientX - area.left) / area.width) * (end - begin);
    let best = 0;
    points.forEach((point, i) => { if (Math.abs(point.at - at) < Math.abs(points[best].at - at)) best = i; });
    const point = points[best];
    mark.setAttribute('x1', x(best)); mark.setAttribute('x2', x(best));
    const parts = [clock(point.at), rate(calls(point))];
    if (point.rate) parts.push(`${share(point.errors / point.rate)} errors`);
    if (point.p99 != null) parts.push(`p99 ${time(point.p99)}`);
    if (point.refused) parts.push(`${rate(point.refused)} refused`);
    say.textContent = parts.join('  ·  ');
  });
  svg.addEventListener('pointerleave', rest);
  const ticks = h('div', { class: 'ticks', 'aria-hidden': 'true' }, h('span', {}, clock(begin)), h('span', {}, clock((begin + end) / 2)), h('span', {}, clock(end)));
  box.append(h('span', { class: 'most', 'aria-hidden': 'true' }, rate(most)), svg, ticks, say);
  return box;
}
