//! The commands of a block, as a shell would split them; no more of a shell than pages need.

use super::page::Block;

/// Programs that a line of an unnamed block may begin with.
const PROGRAMS: &[&str] = &["karst", "kubectl", "helm"];

/// One command with its arguments.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Simple {
    pub(crate) words: Vec<String>,
    /// As it is written.
    pub(crate) line: String,
    /// The page's line, from 1.
    pub(crate) at: usize,
    /// What a here-document gives it.
    pub(crate) input: Option<String>,
    /// Does it read what another command prints?
    pub(crate) piped: bool,
    /// The status that the page says it ends with: `# exit status 65`.
    pub(crate) status: i32,
}

impl Simple {
    pub(crate) fn is(&self, program: &str) -> bool {
        self.words.first().is_some_and(|word| word == program)
    }

    fn has(&self, names: &[&str]) -> bool {
        self.words.iter().any(|word| names.iter().any(|name| word == name || word.starts_with(&format!("{name}="))))
    }

    /// Can it be run here? Commands of `karst` that read files, or nothing.
    pub(crate) fn asks_no_cluster(&self) -> bool {
        let verb = |at: usize| self.words.get(at).map(String::as_str).unwrap_or_default();
        let placeholder = |word: &String| word.contains("manifests/") || word == "DIR" || word == "FILE";
        if !self.is("karst") || self.piped || self.words.iter().any(placeholder) {
            return false;
        }
        match (verb(1), verb(2)) {
            ("validate" | "kube-inject" | "completion" | "profile" | "options" | "reference", _) => true,
            ("analyze" | "version", _) => self.has(&["--use-kube=false", "--remote=false"]),
            ("explain", _) => self.has(&["-f", "--filename"]),
            ("manifest", "generate") => !self.has(&["--cluster-specific"]),
            ("waypoint", "generate") => true,
            _ => false,
        }
    }
}

/// All commands of a block.
pub(crate) fn all(block: &Block) -> Vec<Simple> {
    if !["", "sh", "bash", "console"].contains(&block.kind.as_str()) {
        return vec![];
    }
    let mut found = vec![];
    let mut lines = block.text.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let mut line = line.trim_start().trim_start_matches("$ ").to_string();
        while line.ends_with('\\') {
            line.pop();
            line.push_str(lines.next().map(|(_, next)| next.trim_start()).unwrap_or_default());
        }
        let program = line.split_whitespace().next().unwrap_or_default();
        if !PROGRAMS.contains(&program) && block.kind != "sh" {
            continue;
        }
        let mut input = None;
        if let Some((_, mark)) = line.split_once("<<") {
            let mark = mark.split_whitespace().next().unwrap_or_default().trim_matches(['\'', '"']).to_string();
            let taken = lines.by_ref().map(|(_, next)| next).take_while(|next| *next != mark);
            input = Some(taken.map(|next| format!("{next}\n")).collect());
        }
        found.extend(split(&line, block.line + at, input));
    }
    found
}

/// The commands of a line: they are separated by `|`, `&&` and `;`.
fn split(line: &str, at: usize, mut input: Option<String>) -> Vec<Simple> {
    let status = line.split_once("# exit status ").and_then(|(_, rest)| rest.split([',', ' ']).next()?.parse().ok());
    let new = |piped| Simple { line: line.to_string(), at, piped, status: status.unwrap_or(0), ..Simple::default() };
    let mut all = vec![new(false)];
    let mut skip = false;
    for word in words(line) {
        match word.as_str() {
            "|" | "&&" | ";" => all.push(new(word == "|")),
            // A redirection, with its file; a here-document with its mark.
            ">" | ">>" | "<" | "<<" | "2>" => skip = true,
            _ if word.starts_with("<<") || word.starts_with("<(") => (),
            _ if skip => skip = false,
            _ => all.last_mut().unwrap().words.push(word),
        }
    }
    if let Some(first) = all.first_mut() {
        first.input = input.take();
    }
    all.retain(|command| !command.words.is_empty());
    all
}

/// Words and signs; a comment ends the line.
fn words(line: &str) -> Vec<String> {
    let mut found = vec![];
    let mut word = String::new();
    let (mut quote, mut quoted) = (None, false);
    let end = |word: &mut String, quoted: &mut bool, found: &mut Vec<String>| {
        if !word.is_empty() || *quoted {
            found.push(std::mem::take(word));
        }
        *quoted = false;
    };
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            (_, Some(open)) if letter == open => quote = None,
            (_, Some(_)) => word.push(letter),
            ('\'' | '"', None) => (quote, quoted) = (Some(letter), true),
            ('#', None) if word.is_empty() => break,
            (' ' | '\t', None) => end(&mut word, &mut quoted, &mut found),
            ('|' | ';' | '>', None) => {
                end(&mut word, &mut quoted, &mut found);
                found.push(letter.to_string());
            }
            ('&', None) if letters.next_if_eq(&'&').is_some() => {
                end(&mut word, &mut quoted, &mut found);
                found.push("&&".into());
            }
            _ => word.push(letter),
        }
    }
    end(&mut word, &mut quoted, &mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: &str, text: &str) -> Vec<Vec<String>> {
        let block = Block { kind: kind.into(), line: 1, text: text.into() };
        all(&block).into_iter().map(|command| command.words).collect()
    }

    #[test]
    fn a_line_is_split_as_a_shell_does() {
        let found = of("sh", "$ karst x -H 'a: b' --k=\"c d\" | grep e > f  # why\nkarst \\\n  y && kubectl z; helm w");
        let expected: [&[&str]; 5] = [
            &["karst", "x", "-H", "a: b", "--k=c d"],
            &["grep", "e"],
            &["karst", "y"],
            &["kubectl", "z"],
            &["helm", "w"],
        ];
        assert_eq!(found, expected.map(|words| words.iter().map(|word| word.to_string()).collect::<Vec<_>>()));
    }

    #[test]
    fn a_here_document_is_the_input_and_an_unnamed_block_may_be_output() {
        let block = Block {
            kind: "sh".into(),
            line: 3,
            text: "kubectl apply -f - <<'EOF'\nk: v\nEOF\nkarst validate -f a.yaml  # exit status 65, as it is wrong\n"
                .into(),
        };
        let found = all(&block);
        assert_eq!((found[0].input.as_deref(), found[0].at), (Some("k: v\n"), 3));
        assert_eq!((found[1].status, found[1].asks_no_cluster(), found[1].at), (65, true, 6));
        assert_eq!(of("", "NAME READY\nkarst version"), [["karst", "version"]]);
        assert_eq!(of("text", "karst version"), [[""; 0]; 0]);
    }
}
