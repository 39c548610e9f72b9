//! The verbs that ask no cluster: `completion`, `kube-inject`, `options`.

use crate::{input, problem::Problem, session::Session};
use clap::Args;
use clap_complete::Shell;
use std::path::PathBuf;

/// Options of `completion`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  source <(karst completion bash)
  karst completion zsh > \"${fpath[1]}/_karst\"
  karst completion fish > ~/.config/fish/completions/karst.fish")]
pub struct Completion {
    /// Shell that the script is for
    #[arg(value_enum)]
    shell: Shell,
}

impl Completion {
    /// Prints the script.
    ///
    /// # Errors
    /// If the output is closed.
    pub fn run(&self, session: &mut Session<'_>, mut tree: clap::Command) -> Result<(), Problem> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut tree, session.program, &mut script);
        session.text(&String::from_utf8_lossy(&script))
    }
}

/// Options of `kube-inject`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl apply -f <(karst kube-inject -f app.yaml)
  cat app.yaml | karst kube-inject -f - | kubectl apply -f -

The mesh has no sidecars: the manifest comes out as it is. A namespace joins the mesh by its label:
  kubectl label namespace shop istio.io/dataplane-mode=ambient")]
pub struct KubeInject {
    /// Manifest; - is standard input
    #[arg(short, long = "filename", value_name = "FILE")]
    filename: PathBuf,
}

impl KubeInject {
    /// Prints the manifest as it is, and why.
    ///
    /// # Errors
    /// If it cannot be read, or the output is closed.
    pub fn run(&self, session: &mut Session<'_>) -> Result<(), Problem> {
        let text = input::read(&self.filename)?;
        session.note(
            "note: nothing was injected: this mesh has no sidecars. Pods join it by their namespace's label, without a restart: `kubectl label namespace NAME istio.io/dataplane-mode=ambient`",
        );
        session.text(&text)
    }
}

/// The flags of every verb, as `options` prints them.
///
/// # Errors
/// If the output is closed.
pub fn options(session: &mut Session<'_>, tree: &clap::Command) -> Result<(), Problem> {
    session.line("Every verb takes these options:\n")?;
    for argument in tree.get_arguments().filter(|argument| argument.is_global_set()) {
        let short = argument.get_short().map_or_else(|| "    ".into(), |short| format!("-{short}, "));
        let long = argument.get_long().unwrap_or_default();
        let variable = argument.get_env().map(|name| format!(" [env: {}]", name.to_string_lossy())).unwrap_or_default();
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        session.line(format!("  {short}--{long:<18} {help}{variable}"))?;
    }
    Ok(())
}
