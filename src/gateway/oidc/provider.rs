//! What checks signatures for `jsonwebtoken`: `ring`, which TLS stands on here as well. Public keys only; nothing is signed.

use crate::contract::tokens::rules::Algorithm as Configured;
use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
    VerificationAlgorithm,
};
use signature::Verifier;

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

/// To be called before the first token is judged; again does no harm.
pub(super) fn install() {
    // Fails only where it is there already.
    let _ = PROVIDER.install_default();
}

/// What `jsonwebtoken` calls an algorithm of the configuration.
pub(super) fn algorithm(configured: Configured) -> Algorithm {
    match configured {
        Configured::Rs256 => Algorithm::RS256,
        Configured::Rs512 => Algorithm::RS512,
        Configured::Es256 => Algorithm::ES256,
        Configured::Es384 => Algorithm::ES384,
    }
}

/// How a signature is checked.
enum Check {
    Rsa(&'static RsaParameters, RsaPublicKeyComponents<Vec<u8>>),
    Ec(UnparsedPublicKey<Vec<u8>>),
}

struct Checker {
    algorithm: Algorithm,
    check: Check,
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    let unfit = || ErrorKind::InvalidKeyFormat.into();
    let ec = |curve: &'static dyn VerificationAlgorithm| match key.kind() {
        DecodingKeyKind::SecretOrDer(point) => {
            Ok(Check::Ec(UnparsedPublicKey::new(curve, point.clone())))
        }
        DecodingKeyKind::RsaModulusExponent { .. } => Err(unfit()),
    };
    let rsa = |parameters| match key.kind() {
        DecodingKeyKind::RsaModulusExponent { n, e } => Ok(Check::Rsa(
            parameters,
            RsaPublicKeyComponents {
                n: n.clone(),
                e: e.clone(),
            },
        )),
        DecodingKeyKind::SecretOrDer(_) => Err(unfit()),
    };
    // Of the wrong family, it is somebody's attempt to have a key used for what it is not.
    if key.family() != algorithm.family() {
        return Err(unfit());
    }
    let check = match algorithm {
        Algorithm::RS256 => rsa(&RSA_PKCS1_2048_8192_SHA256)?,
        Algorithm::RS512 => rsa(&RSA_PKCS1_2048_8192_SHA512)?,
        Algorithm::ES256 => ec(&ECDSA_P256_SHA256_FIXED)?,
        Algorithm::ES384 => ec(&ECDSA_P384_SHA384_FIXED)?,
        _ => return Err(ErrorKind::UnsupportedAlgorithm.into()),
    };
    Ok(Box::new(Checker {
        algorithm: *algorithm,
        check,
    }))
}

impl Verifier<Vec<u8>> for Checker {
    fn verify(&self, message: &[u8], given: &Vec<u8>) -> std::result::Result<(), signature::Error> {
        let checked = match &self.check {
            Check::Rsa(parameters, key) => key.verify(parameters, message, given),
            Check::Ec(key) => key.verify(message, given),
        };
        checked.map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Checker {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
