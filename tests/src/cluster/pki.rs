//! Keys and certificates of a cluster, as kubeadm lays them out: one authority for the API server and its clients,
//! another for the front proxy, a pair of keys for service accounts.
//!
//! Comes in: a folder. Goes out: PEM files in it, and kubeconfigs that name them by their paths. Never done here:
//! certificates of the product's own identity.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

use super::plan::{self, Machine};

/// Group of those who may do everything.
pub const MASTERS: &str = "system:masters";
/// Group of the nodes.
pub const NODES: &str = "system:nodes";

/// Whom a certificate is for.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Name of the user, which a certificate has as its common name.
    pub user: &'a str,
    /// Group of the user, which a certificate has as its organization.
    pub group: Option<&'a str>,
}

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// Its private key, PKCS #8 PEM.
    pub key: PathBuf,
}

/// The authorities of a cluster.
#[derive(Debug)]
pub struct Pki {
    folder: PathBuf,
    authority: Issuer<'static, KeyPair>,
    front_proxy: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Makes the authorities and the keys of service accounts in `folder`, which is made.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn make(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let accounts = KeyPair::generate()?;
        fs::write(folder.join("sa.key"), accounts.serialize_pem())?;
        fs::write(folder.join("sa.pub"), accounts.public_key_pem())?;
        Ok(Self {
            folder: folder.to_owned(),
            authority: authority(folder, "ca", "kubernetes")?,
            front_proxy: authority(folder, "front-proxy-ca", "front-proxy-ca")?,
        })
    }

    /// A file of the cluster's: `ca.crt`, `ca.key`, `front-proxy-ca.crt`, `sa.key`, `sa.pub`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A certificate with which the subject shows who it is to the API server.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn client(&self, file: &str, subject: Subject<'_>) -> anyhow::Result<Credentials> {
        let params = params(subject, ExtendedKeyUsagePurpose::ClientAuth);
        self.issue(file, params, &self.authority)
    }

    /// The certificate of the front proxy, by which the API server is known to servers behind it.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn front_proxy_client(&self) -> anyhow::Result<Credentials> {
        let subject = Subject {
            user: "front-proxy-client",
            group: None,
        };
        let params = params(subject, ExtendedKeyUsagePurpose::ClientAuth);
        self.issue("front-proxy-client", params, &self.front_proxy)
    }

    /// The certificate of the API server: for the names and addresses by which pods, nodes and people call it.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn api_server(&self) -> anyhow::Result<Credentials> {
        let service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        let mut names: Vec<String> = service.map(str::to_owned).to_vec();
        names.push(format!("kubernetes.default.svc.{}", plan::DOMAIN));
        names.push("localhost".to_owned());
        let mut addresses = plan::API_SERVICE.to_vec();
        addresses.extend(plan::CONTROL_PLANE.addresses());
        addresses.extend(["127.0.0.1".parse::<IpAddr>()?, "::1".parse()?]);
        let subject = Subject {
            user: "kube-apiserver",
            group: None,
        };
        self.server("apiserver", subject, &names, &addresses)
    }

    /// The certificate by which a kubelet is known to the API server.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn kubelet_server(&self, node: &str, machine: Machine) -> anyhow::Result<Credentials> {
        let user = format!("system:node:{node}");
        let subject = Subject {
            user: &user,
            group: Some(NODES),
        };
        let file = format!("kubelet-server-{node}");
        self.server(&file, subject, &[node.to_owned()], &machine.addresses())
    }

    /// A kubeconfig `file`.kubeconfig for who has `credentials`, to be used where the API server is at `server`.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn kubeconfig(
        &self,
        file: &str,
        server: &str,
        credentials: &Credentials,
    ) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(format!("{file}.kubeconfig"));
        let authority = self.file("ca.crt");
        fs::write(&path, kubeconfig_text(server, &authority, credentials))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn server(
        &self,
        file: &str,
        subject: Subject<'_>,
        names: &[String],
        addresses: &[IpAddr],
    ) -> anyhow::Result<Credentials> {
        let mut params = params(subject, ExtendedKeyUsagePurpose::ServerAuth);
        for name in names {
            let name = name.as_str().try_into()?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        let addresses = addresses.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names.extend(addresses);
        self.issue(file, params, &self.authority)
    }

    fn issue(
        &self,
        file: &str,
        params: CertificateParams,
        issuer: &Issuer<'static, KeyPair>,
    ) -> anyhow::Result<Credentials> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, issuer)?;
        let credentials = Credentials {
            certificate: self.folder.join(format!("{file}.crt")),
            key: self.folder.join(format!("{file}.key")),
        };
        fs::write(&credentials.certificate, certificate.pem())?;
        fs::write(&credentials.key, key.serialize_pem())?;
        Ok(credentials)
    }
}

/// The text of a kubeconfig: a mapping of names to paths, which is what kubeadm writes too.
#[must_use]
pub fn kubeconfig_text(server: &str, authority: &Path, credentials: &Credentials) -> String {
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: fabric
  cluster:
    server: {server}
    certificate-authority: {}
users:
- name: user
  user:
    client-certificate: {}
    client-key: {}
contexts:
- name: fabric
  context:
    cluster: fabric
    user: user
current-context: fabric
",
        authority.display(),
        credentials.certificate.display(),
        credentials.key.display(),
    )
}

/// A self-signed authority, written as `file`.crt and `file`.key.
fn authority(folder: &Path, file: &str, name: &str) -> anyhow::Result<Issuer<'static, KeyPair>> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
    ];
    let certificate = params.self_signed(&key)?;
    fs::write(folder.join(format!("{file}.crt")), certificate.pem())?;
    fs::write(folder.join(format!("{file}.key")), key.serialize_pem())?;
    Ok(Issuer::new(params, key))
}

fn params(subject: Subject<'_>, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, subject.user);
    if let Some(group) = subject.group {
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    params
}
