//! Whether sccache's requests reach their server where a proxy takes them.

use super::connect::CONNECT_TIMEOUT;
use super::http::Http;
use super::{Check, Environment};
use crate::client::endpoint::Endpoint;
use crate::client::proxy::{self, Between};
use crate::client::tls;
use std::io::{BufRead as _, BufReader, Error, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Names the proxy, if there is one, and gives it if it leads to one of `pages` of the server.
pub(super) fn judge(
    environment: &Environment,
    endpoint: &Endpoint,
    pages: &[String],
    checks: &mut Vec<Check>,
) -> Option<Between> {
    let between = proxy::between(environment, &endpoint.url)?;
    let host = &endpoint.host;
    let found = format!("sccache talks to {host} through this proxy");
    // Both names, as the first that is there is the one that counts.
    let direct = format!("${{NO_PROXY:+$NO_PROXY,}}{host}");
    let hint = format!("export NO_PROXY=\"{direct}\"");
    let mut last = String::new();
    for page in pages {
        match ask(&between, endpoint, page) {
            Ok(200) => {
                checks.push(Check::warn(between.variable, found, hint));
                return Some(between);
            }
            Ok(code) => last = format!("answers {code}"),
            Err(cause) => last = format!("passes on no answer: {cause}"),
        }
    }
    let found = format!("{found}, which {last}: nothing is shared");
    checks.push(Check::fail(between.variable, found, hint));
    None
}

/// What a request for `page` gets as sccache makes it: by a tunnel for HTTPS, else with the whole URL.
fn ask(between: &Between, endpoint: &Endpoint, page: &str) -> Result<u16, String> {
    let proxy = &between.proxy;
    if endpoint.tls || proxy.uri().scheme_str() != Some("http") {
        let http = Http::with(page, None, tls::anonymous(), between.for_agent());
        return match http.get("") {
            Ok(answer) => Ok(answer.code),
            Err(cause) => Err(cause.to_string()),
        };
    }
    let (host, port) = (
        proxy.uri().host().unwrap_or_default(),
        proxy.uri().port_u16(),
    );
    let authorization = proxy.basic_auth().and_then(|it| it.to_str().ok());
    let authorization =
        authorization.map_or_else(String::new, |it| format!("Proxy-Authorization: {it}\r\n"));
    let request = format!(
        "GET {page} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{authorization}\r\n",
        endpoint.place()
    );
    let status = plain(host.trim_matches(['[', ']']), port.unwrap_or(80), &request);
    let status = status.map_err(|cause| cause.to_string())?;
    let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.ok_or_else(|| "it does not speak HTTP".to_owned())
}

/// The first line of the answer.
fn plain(host: &str, port: u16, request: &str) -> Result<String, Error> {
    let mut addresses = (host, port).to_socket_addrs()?;
    let address = addresses
        .next()
        .ok_or_else(|| Error::other("it has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(request.as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn proxy_is_told_the_host_as_urls_have_it() {
        for place in ["[fd00::1]:4226", "build-cache:4226"] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let proxy = format!("http://{}", listener.local_addr().unwrap());
            let asked = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let lines = lines.map_while(Result::ok);
                let head: Vec<String> = lines.take_while(|it| !it.is_empty()).collect();
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                head
            });
            let environment = [("http_proxy".to_owned(), proxy)].into();
            let endpoint = Endpoint::parse(&format!("http://{place}")).unwrap();
            let between = proxy::between(&environment, &endpoint.url).unwrap();
            let page = format!("http://{place}/healthz");
            assert_eq!(ask(&between, &endpoint, &page), Ok(200));
            let head = asked.join().unwrap();
            assert_eq!(head[0], format!("GET {page} HTTP/1.1"));
            assert_eq!(head[1], format!("Host: {place}"));
        }
    }
}
