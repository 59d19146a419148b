//! Images of many megabytes, inline or by address, arrive bit for bit.

use crate::support::*;
use serde_json::json;

const MB: usize = 1_000_000;

/// Sends this document by POST and requires that the backend received it bit for bit, under its own name.
async fn arrives(client: &Client, backend: &Backend, path: &str, document: String) {
    let expected = as_native(&document);
    whole(client.post(path, document)).await.ok();
    let request = backend.requests().pop().expect("a request");
    // Not assert_eq: nobody wants to read 30 MB of difference.
    assert!(request.complete && request.body == expected.as_bytes(), "{} bytes became another body", expected.len());
}

#[tokio::test]
async fn images_of_2_to_30_megabytes_arrive_bit_for_bit() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    for megabytes in [2, 10, 30] {
        arrives(&proxy.client, &backend, CHAT, vision_body(&[base64_text(megabytes * MB)])).await;
    }
}

#[tokio::test]
async fn a_large_image_arrives_over_http_2() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    arrives(&Client::h2c(proxy.listen), &backend, CHAT, vision_body(&[base64_text(10 * MB)])).await;
}

#[tokio::test]
async fn a_large_image_arrives_in_chunks() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let document = vision_body(&[base64_text(5 * MB)]);
    let mut raw = Raw::connect(proxy.listen).await;
    raw.send(chunked_head(CHAT)).await;
    raw.send(in_chunks(document.as_bytes().chunks(10_007))).await;
    raw.reply().await.ok();
    assert!(backend.request().body == as_native(&document).as_bytes());
}

#[tokio::test]
async fn several_images_arrive_in_order() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let images: Vec<String> = (1..=8).map(|number| base64_text(MB + number)).collect();
    arrives(&proxy.client, &backend, CHAT, vision_body(&images)).await;
}

#[tokio::test]
async fn image_addresses_pass_as_they_are() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let urls = ["https://example.test/cat.png?w=1&h=2#frag", "http://10.0.0.1/a%20b.jpg", "data:image/png;base64,"];
    let parts: Vec<_> =
        urls.iter().map(|url| json!({"type": "image_url", "image_url": {"url": url, "detail": "low"}})).collect();
    let body = json!({"messages": [{"role": "user", "content": parts}], "model": MODEL});
    arrives(&proxy.client, &backend, CHAT, body.to_string()).await;
}

#[tokio::test]
async fn images_in_the_shape_of_other_apis_arrive() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let image = base64_text(2 * MB);
    let anthropic = json!({"max_tokens": 5, "messages": [{"role": "user", "content": [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": image}}]}], "model": MODEL});
    let responses = json!({"input": [{"role": "user", "content": [
        {"type": "input_image", "image_url": format!("data:image/png;base64,{image}")}]}], "model": MODEL});
    let ollama = json!({"prompt": "what is this?", "images": [image, image], "stream": false, "model": MODEL});
    for (path, body) in [(MESSAGES, anthropic), (RESPONSES, responses), ("/api/generate", ollama)] {
        arrives(&proxy.client, &backend, path, body.to_string()).await;
    }
}

#[tokio::test]
async fn large_images_from_many_clients_at_once_do_not_mix() {
    let (proxy, [a, b]) = proxied("workers = 2\n", ["a", "b"]).await;
    let client = proxy.client.clone();
    let document = |number: usize| vision_body(&[base64_text(3 * MB + number)]);
    in_parallel(12, move |number| {
        let request = client.post(CHAT, document(number));
        async move { whole(request).await.ok() }
    })
    .await;
    let mut arrived: Vec<_> = [&a, &b].into_iter().flat_map(Backend::requests).map(|request| request.body).collect();
    arrived.sort_by_key(bytes::Bytes::len);
    let expected: Vec<_> = (0..12).map(|number| as_native(&document(number)).into_bytes()).collect();
    assert!(arrived == expected, "a body was mixed up");
}

#[tokio::test]
async fn a_multipart_image_arrives_bit_for_bit() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let image: Vec<u8> = (0..3 * MB).map(|at| (at * 31 + (at >> 8)) as u8).collect();
    let part = reqwest::multipart::Part::bytes(image.clone()).file_name("a.png").mime_str("image/png").expect("a type");
    let form = reqwest::multipart::Form::new().part("image", part).text("model", MODEL);
    whole(proxy.client.request("POST", "/v1/images/edits").multipart(form)).await.ok();
    let body = backend.request().body;
    let at = body.windows(64).position(|window| window == &image[..64]).expect("the beginning of the image");
    assert!(body[at..at + image.len()] == image, "the image became another one");
}

#[tokio::test]
async fn who_says_that_its_model_is_blind_is_shown_no_images_while_another_sees() {
    let (proxy, [blind, sees]) = proxied("", [Setup::named("blind").text_only(), Setup::named("sees")]).await;
    let picture = vision_body(&[base64_text(300)]);
    for _ in 0..6 {
        assert_eq!(whole(proxy.client.post(CHAT, picture.clone())).await.ok().backend(), "sees");
        proxy.client.chat().await.ok();
        proxy.client.chat().await.ok();
    }
    assert!(blind.request_count() > 0, "what has no images is for both");
    sees.stop().await;
    proxy.waits_until("sees", "down").await;
    whole(proxy.client.post(CHAT, picture)).await.refused(503, "no_backend_available");
}
