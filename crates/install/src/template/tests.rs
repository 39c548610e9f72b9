//! Templates that are right, and many that are not.

use super::*;
use serde_json::json;

fn render(source: &str, values: serde_json::Value) -> Result<String, TemplateError> {
    let mut templates = Templates::default();
    templates.add("chart/templates/it.yaml", source)?;
    templates.render("chart/templates/it.yaml", Value::from_json(&values))
}

fn gives(source: &str, expected: &str) {
    let values = json!({"name": "a", "none": null, "many": 1_000_000, "two": 2, "list": ["x", "y"], "on": true,
        "map": {"k": "v", "deep": {"er": 1}}, "empty": {}});
    assert_eq!(render(source, values).unwrap(), expected, "{source}");
}

#[test]
fn white_space_is_trimmed_as_go_does() {
    gives("a\n  {{- .name }}\n b", "aa\n b");
    gives("a {{ .name -}}\n\n b", "a ab");
    gives("a {{- /* gone */ -}} b", "ab");
    gives("{{ -1 }}", "-1");
}

#[test]
fn blocks_and_variables() {
    gives("{{ if .none }}1{{ else if .on }}2{{ else }}3{{ end }}", "2");
    gives("{{ with .none }}1{{ else }}{{ .name }}{{ end }}", "a");
    gives("{{ range $i, $v := .list }}{{ $i }}={{ $v }},{{ end }}", "0=x,1=y,");
    gives("{{ range $k, $v := .map }}{{ $k }};{{ end }}", "deep;k;");
    gives("{{ range .empty }}x{{ else }}none{{ end }}", "none");
    gives("{{ range .list }}{{ if eq . \"y\" }}{{ break }}{{ end }}{{ . }}{{ end }}", "x");
    gives("{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}", "2");
    gives("{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ end }}{{ $x }}", "1");
    gives("{{ define \"t\" }}<{{ . }}>{{ end }}{{ template \"t\" .name }}{{ include \"t\" .two | upper }}", "<a><2>");
    gives("{{ block \"b\" .map }}{{ .k }}{{ end }}", "v");
    gives("{{ with .map }}{{ $.name }}{{ end }}", "a");
}

#[test]
fn values_print_as_go_prints_them() {
    gives("{{ .many }} {{ int .many }} {{ .two }} {{ .on }} {{ .missing }}.", "1e+06 1000000 2 true .");
    let of_set = json!({"ttl": integer(7_776_000), "less": integer(-5), "most": integer(i64::MAX)});
    let source = "{{ .ttl }} {{ .ttl | quote }} {{ .less }} {{ .ttl | toJson }} {{ int64 .most }}";
    assert_eq!(render(source, of_set).unwrap(), "7776000 \"7776000\" -5 7776000 9223372036854775807");
    gives("{{ .list }} {{ .map }}", "[x y] map[deep:map[er:1] k:v]");
    gives("{{ printf \"%s-%d-%q-%v\" .name (int .two) .name .map.k }}", "a-2-\"a\"-v");
    gives("{{ printf \"%05d|%-3s|%.1f\" 42 .name 1.25 }}", "00042|a  |1.2");
    gives("{{ .none | quote }}{{ .name | quote }}{{ .two | squote }}", "\"a\"'2'");
}

#[test]
fn functions_of_sprig() {
    gives("{{ default \"d\" .none }}{{ .name | default \"d\" }}", "da");
    gives("{{ trunc 2 \"abc\" }}{{ trunc -2 \"abc\" }}{{ trimSuffix \"-\" \"a-\" }}", "abbca");
    gives("{{ list 1 2 | toJson }}{{ dict \"a\" 1 | toJson }}", "[1,2]{\"a\":1}");
    gives("{{ ternary \"y\" \"n\" .on }}{{ hasKey .map \"k\" }}{{ get .map \"no\" }}", "ytrue");
    gives("{{ (merge (dict \"a\" 1) (dict \"a\" 2 \"b\" 3)) | toJson }}", "{\"a\":1,\"b\":3}");
    gives("{{ $d := dict }}{{ $_ := set $d \"k\" .name }}{{ $d.k }}", "a");
    gives("{{ join \",\" (append .list \"x\" | uniq) }}", "x,y");
    gives("{{ max 1 (sub .two 5) }}{{ add 1 2 3 }}{{ and 1 0 }}{{ or 0 2 }}", "1602");
    gives("{{ tpl \"{{ .name }}!\" . }}{{ .map | toYaml | nindent 2 }}", "a!\n  deep:\n    er: 1\n  k: v");
    gives("{{ lookup \"v1\" \"Pod\" \"\" \"\" | toJson }}", "{}");
    gives("{{ dig \"deep\" \"er\" 0 .map }}{{ index .list 1 }}{{ len .list }}", "1y2");
    gives("{{ if or (not .on) (gt (int .two) 1) }}yes{{ end }}", "yes");
}

#[test]
fn yaml_is_written_as_go_writes_it() {
    let value = json!({"a": ["x", {"k": [1]}], "b": {}, "c": "true", "d": "a: b", "e": "l1\nl2\n", "n": "1", "s": "*"});
    let yaml = to_yaml(&value);
    assert_eq!(yaml, "a:\n- x\n- k:\n  - 1\nb: {}\nc: \"true\"\nd: 'a: b'\ne: |\n  l1\n  l2\n\"n\": \"1\"\ns: '*'");
    assert_eq!(crate::documents::read_one(&yaml).unwrap(), value);
}

#[test]
fn errors_name_file_and_line() {
    let error = |source: &str| render(source, json!({"name": "a"})).unwrap_err().to_string();
    assert_eq!(
        error("\n\n{{ .name.more }}"),
        "chart/templates/it.yaml:3: cannot read .more of string: set the value that it belongs to"
    );
    assert!(error("a\n{{ nosuch 1 }}").starts_with("chart/templates/it.yaml:2: function \"nosuch\""));
    assert!(error("{{ include \"none\" . }}").contains("no template \"none\""));
    assert!(error("{{ $x }}").contains("variable $x"));
    assert_eq!(error("{{ required \"set name\" .none }}"), "chart/templates/it.yaml:1: set name");
    assert!(error("{{ fail \"no\" }}").ends_with(":1: no"));
}

#[test]
fn malformed_templates_are_errors() {
    for source in [
        "{{",
        "{{ if }}x{{ end }}",
        "{{ if .a }}",
        "{{ end }}",
        "{{ else }}",
        "{{ . ",
        "{{ \"a }}",
        "{{ `a }}",
        "{{ (1 }}",
        "{{ 1) }}",
        "{{ | }}",
        "{{ a | }}",
        "{{ define }}x{{ end }}",
        "{{ define \"x\" }}",
        "{{ := 1 }}",
        "{{ 1x }}",
        "{{/* open",
        "{{ , }}",
        "{{ '' }}",
        "{{ \"\\q\" }}",
        "{{ range }}{{ end }}",
        "{{ template }}",
        "{{ 5 .a }}",
        "{{ trunc 1 }}",
        "{{ eq 1 1.5 }}",
        "{{ merge 1 2 }}",
        "{{ index .list 9 }}",
        "{{ div 1 0 }}",
        "{{ @ }}",
    ] {
        assert!(render(source, json!({"list": []})).is_err(), "{source}");
    }
}

/// Every prefix of a template with one of everything, and the same with a byte less in the middle.
#[test]
fn cut_templates_never_panic() {
    let whole = "{{- define \"é\" -}}{{ $x := dict \"a\" (list 1 `r` 'c') }}{{ range $k, $v := $x }}{{ $v | toYaml | nindent 2 }}\
        {{ else }}{{ break }}{{ end }}{{ end }}{{/* c */}}{{ with .a.b }}{{ template \"é\" . }}{{ end -}} é {{ trunc 1 \"é\" }}";
    for end in (0..=whole.len()).filter(|end| whole.is_char_boundary(*end)) {
        let _ = render(&whole[..end], json!({"a": {"b": 1}}));
        let rest: String = whole.chars().skip(end).collect();
        let _ = render(&rest, json!({"a": {"b": 1}}));
    }
}

#[test]
fn depth_and_size_are_bounded() {
    let much = |source: &str| {
        let error = render(source, json!({})).unwrap_err();
        assert!(matches!(error.fault, Fault::TooMuch { .. }), "{source}: {error}");
    };
    much("{{ define \"t\" }}{{ include \"t\" . }}{{ end }}{{ include \"t\" . }}");
    much("{{ $t := \"{{ tpl .t . }}\" }}{{ tpl $t (dict \"t\" $t) }}");
    much(&format!("{}1{}", "{{ ".to_string() + &"(".repeat(5000), ")".repeat(5000) + " }}"));
    much(&("{{ if true }}".repeat(5000) + &"{{ end }}".repeat(5000)));
    much(&("{{ if true }}1".to_string() + &"{{ else if true }}".repeat(5000) + "{{ end }}"));
    much("{{ repeat 100000000 \"x\" }}");
    much("{{ range until 100000000 }}x{{ end }}");
    much("{{ range until 90000 }}{{ range until 90000 }}{{ end }}{{ end }}");
    much("{{ range until 90000 }}{{ repeat 1000 \"x\" }}{{ end }}");
    // A map in itself, and lists that double: an end all the same.
    let _ = render("{{ $d := dict }}{{ $_ := set $d \"d\" $d }}{{ $d | toJson }}{{ deepCopy $d }}", json!({}));
    let doubled = "{{ $l = list $l $l }}".repeat(40);
    let _ = render(&format!("{{{{ $l := list }}}}{doubled}{{{{ toJson $l | len }}}}"), json!({}));
}
