//! The mesh configuration, which no webhook judges: what istiod says of it in its log and in an event.

use super::objects::{Item, Objects};
use crate::analysis::{Level, Message};
use karst_manifest::{MeshConfig, mesh_config::KEY};

/// What is wrong with the configurations of the mesh's revisions (KARST-0710, KARST-0712).
pub(super) fn configurations(objects: &Objects) -> Vec<Message> {
    let all = objects.of("ConfigMap", "").filter(|map| map.namespace() == objects.root_namespace);
    all.filter(|map| map.name() == "istio" || map.name().starts_with("istio-")).flat_map(judge).collect()
}

fn judge(map: &Item) -> Vec<Message> {
    // Without the key it is no mesh configuration, or says nothing.
    let text = map.text(&format!("/data/{KEY}"));
    let say = |code, level, error: String| map.say(code, level, format!("data.{KEY}: {error}"));
    match MeshConfig::read(text) {
        Err(error) => vec![say("KARST-0710", Level::Error, error.to_string())],
        Ok(_) => {
            let unknown = MeshConfig::unknown_fields(text);
            unknown.iter().map(|field| say("KARST-0712", Level::Warning, field.to_string())).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::codes;

    #[test]
    fn slips_and_faults_of_the_mesh_configuration_are_named() {
        let said = |name: &str, namespace: &str, mesh: &str| {
            let all = codes(&format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: {namespace}}}\ndata: {{mesh: {mesh:?}}}\n"
            ));
            all.into_iter().map(|(code, _)| code).collect::<Vec<_>>().join(" ")
        };
        let root = "istio-system";
        assert_eq!(said("istio", root, "enableTracing: true\nenableTracking: true\n"), "KARST-0712");
        assert_eq!(said("istio-canary", root, "{a: 1, defaultConfig: {b: 2}}"), "KARST-0712 KARST-0712");
        assert_eq!(said("istio", root, "{a: 1, accessLogFile: /x}"), "KARST-0710");
        assert_eq!(said("istio", root, "accessLogFile: ''"), "");
        for (name, namespace) in [("istio", "shop"), ("other", root)] {
            assert_eq!(said(name, namespace, "a: 1"), "", "not the mesh's: {namespace}/{name}");
        }
    }
}
