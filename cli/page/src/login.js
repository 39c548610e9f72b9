// Shows the user's token once, to our own server. What comes back is good for this page only, and stays in this tab.
const KEY = 'karst-token';
const form = document.getElementById('login'), field = document.getElementById('token'), said = document.getElementById('said');
const button = form.querySelector('button');

async function login(token) {
  const answer = await fetch('/api/login', { method: 'POST', cache: 'no-store', headers: { authorization: `Bearer ${token}` } });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error);
  sessionStorage.setItem(KEY, body.token);
}

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  const token = field.value.trim();
  button.disabled = true;
  said.textContent = '';
  try {
    // What is no header's text is no token, and fetch would say so in words of its own.
    if (!/^[\x21-\x7e]+$/.test(token)) throw new Error('this is not a token: it has spaces or other characters that none has');
    await login(token);
    field.value = '';
    location.replace('/');
  } catch (error) {
    said.textContent = error.message;
    button.disabled = false;
    field.select();
  }
});
