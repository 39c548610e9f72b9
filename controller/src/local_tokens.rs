//! Tokens of directory mode: JWTs signed by a local key, with the claims of Kubernetes' bound tokens, so that what is
//! verified is the same in both modes.

use crate::{
    config::{Config, Token},
    private_file::write_private,
};
use anyhow::Context;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use karst_rt::clock;
use serde::{Deserialize, Serialize};
use std::{fs, path::Path};

const ISSUER: &str = "karst-directory-mode";

/// The claims that are looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    /// Issuer.
    pub iss: String,
    /// `system:serviceaccount:<namespace>:<name>`.
    pub sub: String,
    /// Audiences.
    pub aud: Vec<String>,
    /// Expiry, seconds since the epoch.
    pub exp: u64,
    /// Not before.
    pub nbf: u64,
    /// What the token is bound to.
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
}

/// What a token is bound to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// Namespace of the account and the pod.
    pub namespace: String,
    /// The account.
    pub serviceaccount: Named,
    /// The pod.
    pub pod: Named,
    /// The pod's node.
    pub node: Named,
}

/// A name and uid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Named {
    /// Name.
    pub name: String,
    /// Uid.
    #[serde(default)]
    pub uid: String,
}

/// The key that signs and verifies.
pub struct Keys {
    encode: EncodingKey,
    decode: DecodingKey,
}

impl Keys {
    /// Opens the key in the data directory, or makes one.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {} (--data-dir)", dir.display()))?;
        let path = dir.join("token-key.pem");
        if !path.exists() {
            let key = rcgen::KeyPair::generate()?;
            write_private(&path, &key.serialize_pem())?;
        }
        let pem = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let key = rcgen::KeyPair::from_pem(&pem)
            .with_context(|| format!("{} is not a private key in PEM format", path.display()))?;
        Ok(Self {
            encode: EncodingKey::from_ec_pem(pem.as_bytes())?,
            decode: DecodingKey::from_ec_pem(key.public_key_pem().as_bytes())?,
        })
    }
    /// Verifies a token for an audience.
    pub fn verify(&self, token: &str, audience: &str) -> Result<Claims, jsonwebtoken::errors::Error> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[audience]);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = 10;
        jsonwebtoken::decode::<Claims>(token, &self.decode, &validation).map(|d| d.claims)
    }
    /// Signs claims.
    pub fn sign(&self, claims: &Claims) -> anyhow::Result<String> {
        Ok(jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &self.encode)?)
    }
}

/// `karst-controller token`.
pub fn command(config: &Config, token: &Token) -> anyhow::Result<()> {
    let (namespace, account) =
        token.service_account.split_once('/').context("--service-account: use NAMESPACE/NAME")?;
    let now = clock::since_epoch().as_secs();
    let named = |name: &str, uid: &str| Named { name: name.into(), uid: uid.into() };
    let claims = Claims {
        iss: ISSUER.into(),
        sub: format!("system:serviceaccount:{namespace}:{account}"),
        aud: vec![token.audience.clone()],
        exp: now + token.lifetime,
        nbf: now,
        bound: Bound {
            namespace: namespace.into(),
            serviceaccount: named(account, ""),
            pod: named(&token.pod, &token.pod_uid),
            node: named(&token.node_name, ""),
        },
    };
    println!("{}", Keys::open(&config.data_dir)?.sign(&claims)?);
    Ok(())
}
