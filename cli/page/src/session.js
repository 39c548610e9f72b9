// Where users log in (the page in the cluster): who it is, the way out, and back to the login when the session has ended. On the user's
// own machine nobody logs in, and there is nothing to do. Not bundled, and before the page has anything to show.
const KEY = 'karst-token', EVERY = 30_000;
const user = document.getElementById('user'), out = document.getElementById('logout');
const ask = (path, method) => fetch(path, { method, cache: 'no-store', headers: { 'x-karst-token': sessionStorage.getItem(KEY) ?? '' } });

function leave(login) {
  sessionStorage.removeItem(KEY);
  location.replace(login);
}

/** Is there more to look for? */
async function look() {
  const answer = await ask('/api/session', 'GET');
  const body = await answer.json();
  if (answer.status === 401) {
    if (body.login) leave(body.login);
    return false;
  }
  if (!answer.ok) return true;
  user.textContent = body.user ?? '';
  user.hidden = out.hidden = !body.user;
  return Boolean(body.user);
}

out.addEventListener('click', async () => {
  await ask('/api/logout', 'POST').catch(() => null);
  leave('/login.html');
});
// An address with a secret is of the user's own machine. A server that does not answer is told of by the page.
if (!/^#(token|code)=/.test(location.hash)) {
  while (await look().catch(() => true)) await new Promise((done) => setTimeout(done, EVERY));
}
