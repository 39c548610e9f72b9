//! The images in the layout: for each a list of what it is for each architecture, with bills of materials and the digests
//! as values of the chart `ambient`.

use super::{architecture::Architecture, page::Page, source::Source};
use crate::{
    images::{self, BUSYBOX, COMPONENTS, Component, HUB, SAMPLES},
    oci::{self, Layout},
    sbom::{Content, Sources, Subject},
};
use anyhow::{Context, Result};
use serde_json::Value;
use std::{fs, path::PathBuf};

/// Programs of one architecture.
pub(crate) struct Built {
    /// Which.
    pub(crate) architecture: Architecture,
    /// Where they are.
    pub(crate) programs: PathBuf,
    /// Where stripped ones are put.
    pub(crate) folder: PathBuf,
    /// What they are linked from.
    pub(crate) sources: Sources,
    /// Is there an image of the sample applications? Its shell is this machine's own.
    pub(crate) samples: bool,
}

impl Built {
    /// A program without debug information.
    pub(crate) fn stripped(&self, program: &str) -> Result<PathBuf> {
        images::strip_with(&self.architecture.strip(), &self.programs.join(program), &self.folder)
    }

    /// Adds a component's image to the layout, and what is in it to the page; gives the descriptor.
    fn component(&self, component: &Component, source: &Source, page: &mut Page, layout: &mut Layout) -> Result<Value> {
        let name = format!("{HUB}/{}", component.image);
        let stripped = self.stripped(component.program)?;
        let image = component.image(&format!("{name}:{}", source.version), &stripped);
        let program = fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))?;
        let descriptor = image.add(layout, self.architecture.name())?;
        let content = Content {
            subject: Subject::Image { name: &name, digest: &oci::digest(&descriptor)? },
            version: &source.version,
            package: component.package,
            program: Some(&program),
            debian: &[],
        };
        self.material(component.image, source, &content, page)?;
        Ok(descriptor)
    }

    /// The same for the sample applications.
    fn samples(&self, source: &Source, page: &mut Page, layout: &mut Layout) -> Result<Value> {
        let name = format!("{HUB}/samples");
        let programs = SAMPLES.iter().map(|program| self.stripped(program)).collect::<Result<Vec<_>>>()?;
        let image = images::samples(&format!("{name}:{}", source.version), &programs);
        let descriptor = image.add(layout, self.architecture.name())?;
        let content = Content {
            subject: Subject::Image { name: &name, digest: &oci::digest(&descriptor)? },
            version: &source.version,
            package: "samples",
            program: None,
            debian: &[BUSYBOX],
        };
        self.material("samples", source, &content, page)?;
        Ok(descriptor)
    }

    fn material(&self, image: &str, source: &Source, content: &Content<'_>, page: &mut Page) -> Result<()> {
        let document = self.sources.document(content).with_context(|| format!("what is in the image {image}"))?;
        page.put_json(&format!("{image}-{}-linux-{}.cdx.json", source.version, self.architecture.name()), &document)
    }
}

/// Adds all images of all architectures, under the names `IMAGE:VERSION`.
pub(crate) fn publish(built: &[Built], source: &Source, page: &mut Page, layout: &mut Layout) -> Result<()> {
    let mut digests = vec![];
    for component in &COMPONENTS {
        let mut manifests = vec![];
        for one in built {
            manifests.push(one.component(component, source, page, layout)?);
        }
        digests.push((component.value, name(layout, &manifests, component.image, source)?));
    }
    let mut manifests = vec![];
    for one in built.iter().filter(|one| one.samples) {
        manifests.push(one.samples(source, page, layout)?);
    }
    if !manifests.is_empty() {
        name(layout, &manifests, "samples", source)?;
    }
    let comment = format!("The images of Karst {} by their digests: helm install ambient … -f FILE", source.version);
    page.put(&format!("karst-{}-digests.yaml", source.version), images::values(&comment, &digests).into_bytes());
    Ok(())
}

/// Names an image of several architectures; gives its digest.
fn name(layout: &mut Layout, manifests: &[Value], image: &str, source: &Source) -> Result<String> {
    let index = layout.platforms(manifests)?;
    let digest = oci::digest(&index)?;
    let name = format!("{image}:{}", source.version);
    layout.name(index, &name, &format!("{HUB}/{name}"));
    Ok(digest)
}
