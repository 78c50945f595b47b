//! A registry of container images in the control plane's network: the mirror of all registries for the nodes, which
//! reach no other.
//!
//! Comes in: [`Image`]s, and requests of the OCI Distribution Specification 1.1 for what they are made of: manifests by
//! tag or digest, blobs by digest. Never done here: pushing, or any image that was not put in.

use std::{
    collections::HashMap,
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use anyhow::Context as _;
use axum::{
    Router,
    body::Body,
    extract::State,
    http::{Method, Response, StatusCode, Uri, header},
};
use fabric_node::lab::underlay::inside;
use tokio::sync::oneshot;

use super::images::{Blob, Image, MANIFEST_TYPE};

/// Header that names what is answered (OCI Distribution Specification 1.1, "Pulling manifests").
const DIGEST_HEADER: &str = "Docker-Content-Digest";
/// Type of blobs.
const BLOB_TYPE: &str = "application/octet-stream";

/// What there is to be had.
#[derive(Debug, Default)]
struct Shelf {
    /// Digests of manifests by `REGISTRY/REPOSITORY:TAG`.
    tags: HashMap<String, String>,
    /// Contents by digest.
    contents: HashMap<String, Content>,
}

#[derive(Clone, Debug)]
enum Content {
    Manifest(Vec<u8>),
    Small(Vec<u8>),
    File(PathBuf),
}

/// A running registry; it ends when dropped.
#[derive(Debug)]
pub struct Registry {
    shelf: Arc<Mutex<Shelf>>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Registry {
    /// Listens on `address` in the network namespace `netns`.
    ///
    /// # Errors
    ///
    /// The address is taken.
    pub fn start(netns: &Path, address: SocketAddr) -> anyhow::Result<Self> {
        let listener = inside(netns, || {
            let listener = TcpListener::bind(address)
                .with_context(|| format!("the registry cannot listen on {address}"))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        let shelf = Arc::new(Mutex::new(Shelf::default()));
        let service = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&shelf));
        let (end, ended) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = thread::Builder::new()
            .name("registry".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
                        return;
                    };
                    tokio::select! {
                        _ = axum::serve(listener, service) => {}
                        _ = ended => {}
                    }
                });
            })?;
        Ok(Self {
            shelf,
            end: Some(end),
            thread: Some(thread),
        })
    }

    /// Puts an image in.
    pub fn add(&self, image: &Image) {
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        let Blob { digest, content } = &image.manifest;
        shelf.tags.insert(image.name.to_owned(), digest.clone());
        let manifest = Content::Manifest(content.clone());
        shelf.contents.insert(digest.clone(), manifest);
        let config = Content::Small(image.config.content.clone());
        shelf.contents.insert(image.config.digest.clone(), config);
        let layer = Content::File(image.layer.content.clone());
        shelf.contents.insert(image.layer.digest.clone(), layer);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn answer(
    State(shelf): State<Arc<Mutex<Shelf>>>,
    method: Method,
    uri: Uri,
) -> Response<Body> {
    if method != Method::GET && method != Method::HEAD {
        return refusal(StatusCode::METHOD_NOT_ALLOWED);
    }
    if uri.path() == "/v2/" {
        return Response::new(Body::empty());
    }
    let found = shelf
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .find(&uri);
    let Some((digest, content)) = found else {
        return refusal(StatusCode::NOT_FOUND);
    };
    let kind = match content {
        Content::Manifest(_) => MANIFEST_TYPE,
        Content::Small(_) | Content::File(_) => BLOB_TYPE,
    };
    let bytes = match content {
        Content::Manifest(bytes) | Content::Small(bytes) => bytes,
        Content::File(path) => match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(_) => return refusal(StatusCode::INTERNAL_SERVER_ERROR),
        },
    };
    let length = bytes.len();
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        Body::from(bytes)
    };
    Response::builder()
        .header(header::CONTENT_TYPE, kind)
        .header(header::CONTENT_LENGTH, length)
        .header(DIGEST_HEADER, digest)
        .body(body)
        .unwrap_or_else(|_| refusal(StatusCode::INTERNAL_SERVER_ERROR))
}

fn refusal(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

impl Shelf {
    /// What `/v2/REPOSITORY/manifests/TAG?ns=REGISTRY` and the like ask for: `ns` is how containerd tells a mirror whose
    /// image it wants.
    fn find(&self, uri: &Uri) -> Option<(String, Content)> {
        let rest = uri.path().strip_prefix("/v2/")?;
        let (above, name) = rest.rsplit_once('/')?;
        let (repository, kind) = above.rsplit_once('/')?;
        let digest = if name.starts_with("sha256:") {
            name.to_owned()
        } else {
            let registry = uri
                .query()?
                .split('&')
                .find_map(|pair| pair.strip_prefix("ns="))?;
            let tag = format!("{registry}/{repository}:{name}");
            self.tags.get(&tag)?.clone()
        };
        let content = self.contents.get(&digest)?.clone();
        let is_manifest = matches!(content, Content::Manifest(_));
        ((kind == "manifests") == is_manifest).then_some((digest, content))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A manifest is found by tag and by digest, a blob by digest only, and neither as the other.
    #[test]
    fn images_are_found_by_tag_and_digest() {
        let blob = |digest: &str| Blob {
            digest: format!("sha256:{digest}"),
            content: digest.as_bytes().to_vec(),
        };
        let image = Image {
            name: "docker.io/library/busybox:latest",
            layer: Blob {
                digest: "sha256:1".to_owned(),
                content: PathBuf::from("/layer"),
            },
            config: blob("2"),
            manifest: blob("3"),
        };
        let registry = Registry {
            shelf: Arc::default(),
            end: None,
            thread: None,
        };
        registry.add(&image);
        let shelf = registry.shelf.lock().unwrap();
        let find = |path: &str| Some(shelf.find(&path.parse().unwrap())?.0);
        let three = Some("sha256:3".to_owned());
        let base = "/v2/library/busybox";
        let tagged = format!("{base}/manifests/latest?ns=docker.io");
        assert_eq!(find(&tagged), three);
        assert_eq!(find(&format!("{base}/manifests/sha256:3")), three);
        for there in ["blobs/sha256:1", "blobs/sha256:2"] {
            assert!(find(&format!("{base}/{there}")).is_some(), "{there}");
        }
        for wrong in [
            "manifests/sha256:2",
            "blobs/sha256:3",
            "manifests/1.0?ns=docker.io",
            "manifests/latest?ns=quay.io",
            "manifests/latest",
        ] {
            assert_eq!(find(&format!("{base}/{wrong}")), None, "{wrong}");
        }
        drop(shelf);
    }
}
