// Light or dark: the system's, until somebody chooses.
const KEY = 'karst-theme';

export function theme(button, changed) {
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const now = () => localStorage.getItem(KEY) ?? (dark.matches ? 'dark' : 'light');
  const apply = () => {
    document.documentElement.dataset.theme = now();
    button.setAttribute('aria-pressed', String(now() === 'dark'));
    changed();
  };
  button.addEventListener('click', () => { localStorage.setItem(KEY, now() === 'dark' ? 'light' : 'dark'); apply(); });
  dark.addEventListener('change', apply);
  apply();
}
