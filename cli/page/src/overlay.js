// Over the graph: a lock on each edge in mutual TLS, and dots that move as calls do. Drawn, so that no font needs to have a lock.
const FEW = 140;

export function overlay(canvas, cy) {
  const context = canvas.getContext('2d');
  const still = matchMedia('(prefers-reduced-motion: reduce)');
  let began = performance.now(), moves = false;

  function ends(edge) {
    const from = edge.renderedSourceEndpoint(), to = edge.renderedTargetEndpoint();
    return from && to && Number.isFinite(from.x + to.x) ? { from, to, middle: edge.renderedMidpoint() ?? from } : null;
  }
  const along = ({ from, middle, to }, t) => {
    // A quadratic curve through the middle.
    const x = 2 * middle.x - (from.x + to.x) / 2, y = 2 * middle.y - (from.y + to.y) / 2, u = 1 - t;
    return { x: u * u * from.x + 2 * u * t * x + t * t * to.x, y: u * u * from.y + 2 * u * t * y + t * t * to.y };
  };
  function lock({ x, y }, size, colour, ground) {
    context.fillStyle = ground;
    context.beginPath(); context.arc(x, y, size * 1.15, 0, 7); context.fill();
    context.fillStyle = context.strokeStyle = colour;
    context.lineWidth = size * 0.26;
    context.beginPath(); context.arc(x, y - size * 0.14, size * 0.36, Math.PI, 0); context.stroke();
    context.fillRect(x - size * 0.56, y - size * 0.14, size * 1.12, size * 0.82);
  }
  function draw(now) {
    const ratio = devicePixelRatio || 1, { clientWidth: width, clientHeight: height } = canvas;
    if (canvas.width !== width * ratio || canvas.height !== height * ratio) { canvas.width = width * ratio; canvas.height = height * ratio; }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const zoom = cy.zoom(), edges = cy.edges();
    moves = edges.length <= FEW && !still.matches && !document.hidden && width > 0;
    const quiet = colour('lock'), ground = colour('ground');
    edges.forEach((edge) => {
      if (edge.hasClass('faded')) return;
      const line = ends(edge);
      if (!line) return;
      if (moves && edge.data('volume') > 0 && edge.data('state') !== 'refused') {
        const length = Math.hypot(line.to.x - line.from.x, line.to.y - line.from.y);
        const dots = Math.max(1, Math.min(6, Math.round(Math.log2(1 + edge.data('volume')))));
        context.fillStyle = edge.data('colour');
        for (let i = 0; i < dots; i += 1) {
          const t = ((now - began) * 0.00011 * (220 / Math.max(length, 80)) * Math.max(zoom, 0.4) + i / dots) % 1;
          const at = along(line, t);
          context.beginPath(); context.arc(at.x, at.y, Math.max(2, (edge.data('width') / 2 + 1.3) * zoom), 0, 7); context.fill();
        }
      }
      if (edge.data('mtls') === 'all' && zoom > 0.42) lock(along(line, Math.min(0.3, (11 * zoom + 3) / Math.max(1, Math.hypot(line.to.x - line.from.x, line.to.y - line.from.y)))), 5.6 * Math.min(zoom, 1.15), quiet, ground);
    });
    if (moves) schedule();
  }
  let waiting = false;
  function schedule() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame((now) => { waiting = false; draw(now); });
  }
  cy.on('render', schedule);
  document.addEventListener('visibilitychange', schedule);
  still.addEventListener('change', schedule);
  return schedule;
}
