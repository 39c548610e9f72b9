// Requests to our own server. The secret comes in the part of the address that is never sent, and stays in this tab.
const KEY = 'karst-token';

async function json(path, options = {}) {
  const answer = await fetch(path, { cache: 'no-store', ...options });
  const body = await answer.json().catch(() => ({ error: `status ${answer.status}` }));
  if (!answer.ok) throw Object.assign(new Error(body.error), { status: answer.status });
  return body;
}

/** Takes the secret out of the address, so that it is in no history and no bookmark. */
export async function login() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (location.hash) history.replaceState(null, '', location.pathname);
  if (given.has('token')) sessionStorage.setItem(KEY, given.get('token'));
  if (given.has('code')) {
    const { token } = await json('/api/session', { method: 'POST', headers: { 'x-karst-code': given.get('code') } });
    sessionStorage.setItem(KEY, token);
  }
}

export function get(path, parameters = {}) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== '' && value != null));
  return json(`${path}?${query}`, { headers: { 'x-karst-token': sessionStorage.getItem(KEY) ?? '' } });
}
