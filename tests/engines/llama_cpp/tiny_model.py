"""A tiny llama with random weights and a vision projector that fits it, as GGUF files. Standard library only.

It talks nonsense, some thousand tokens a second: all that a test of the server around it needs.
"""

import array
import random
import struct

# Types of values in a GGUF file; tensors are of type 0, 32-bit floats.
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
ALIGNMENT = 32

# The language model. The context is split over the server's slots.
CONTEXT, WIDTH, LAYERS, HEADS, FORWARD = 131_072, 64, 2, 4, 128
# The vision tower: 4 x 4 patches an image.
VISION_WIDTH, VISION_LAYERS, VISION_HEADS, VISION_FORWARD, IMAGE, PATCH = 32, 2, 2, 64, 56, 14

CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "


class Gguf:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.keys, self.tensors = [], []

    def put(self, key, kind, value):
        self.keys.append(string(key) + struct.pack("<I", kind) + packed(kind, value))

    def put_numbers(self, prefix, **numbers):
        for key, number in numbers.items():
            self.put(f"{prefix}.{key}", U32, number)

    def put_array(self, key, kind, values):
        head = struct.pack("<IIQ", ARRAY, kind, len(values))
        self.keys.append(string(key) + head + b"".join(packed(kind, value) for value in values))

    def weights(self, name, *shape):
        """Random numbers; the shape has its fastest dimension first."""
        count = 1
        for size in shape:
            count *= size
        self.tensors.append((name, shape, [self.random.gauss(0, 0.08) for _ in range(count)]))

    def constant(self, name, size, value):
        self.tensors.append((name, (size,), [value] * size))

    def norm(self, name, size):
        self.constant(name + ".weight", size, 1.0)
        self.constant(name + ".bias", size, 0.0)

    def linear(self, name, inputs, outputs):
        self.weights(name + ".weight", inputs, outputs)
        self.constant(name + ".bias", outputs, 0.0)

    def write(self, path):
        infos, blobs, offset = b"", [], 0
        for name, shape, values in self.tensors:
            infos += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)
            blobs.append(padded(array.array("f", values).tobytes()))
            offset += len(blobs[-1])
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.keys))
        with open(path, "wb") as file:
            file.write(padded(head + b"".join(self.keys) + infos))
            file.writelines(blobs)


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def packed(kind, value):
    return string(value) if kind == STRING else struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], value)


def padded(data):
    return data + b"\0" * (-len(data) % ALIGNMENT)


def put_vocabulary(model):
    """Three control tokens, every byte, every character of ASCII; returns how many there are."""
    control, byte, normal = 3, 6, 1
    tokens = [(b"<unk>", 0.0, 2), (b"<s>", 0.0, control), (b"</s>", 0.0, control)]
    tokens += [(f"<0x{number:02X}>".encode(), 0.0, byte) for number in range(256)]
    # The tokenizer writes a space as U+2581.
    tokens += [("\u2581".encode() if code == 32 else bytes([code]), -float(code), normal) for code in range(32, 127)]
    texts, scores, kinds = zip(*tokens)
    model.put("tokenizer.ggml.model", STRING, "llama")
    model.put_array("tokenizer.ggml.tokens", STRING, texts)
    model.put_array("tokenizer.ggml.scores", F32, scores)
    model.put_array("tokenizer.ggml.token_type", I32, kinds)
    model.put_numbers("tokenizer.ggml", unknown_token_id=0, bos_token_id=1, eos_token_id=2)
    model.put("tokenizer.chat_template", STRING, CHAT_TEMPLATE)
    return len(tokens)


def write_model(path):
    model = Gguf(seed=7)
    model.put("general.architecture", STRING, "llama")
    model.put("general.name", STRING, "tiny-random")
    model.put("general.file_type", U32, 0)
    model.put("llama.attention.layer_norm_rms_epsilon", F32, 1e-5)
    vocabulary = put_vocabulary(model)
    sizes = {
        "context_length": CONTEXT, "embedding_length": WIDTH, "block_count": LAYERS, "feed_forward_length": FORWARD,
        "attention.head_count": HEADS, "attention.head_count_kv": HEADS, "rope.dimension_count": WIDTH // HEADS,
        "vocab_size": vocabulary,
    }
    model.put_numbers("llama", **sizes)
    model.weights("token_embd.weight", WIDTH, vocabulary)
    model.weights("output.weight", WIDTH, vocabulary)
    model.constant("output_norm.weight", WIDTH, 1.0)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            model.constant(f"{block}{norm}.weight", WIDTH, 1.0)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            model.weights(f"{block}{name}.weight", WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            model.weights(f"{block}{name}.weight", WIDTH, FORWARD)
        model.weights(f"{block}ffn_down.weight", FORWARD, WIDTH)
    model.write(path)


def write_projector(path):
    model = Gguf(seed=8)
    model.put("general.architecture", STRING, "clip")
    model.put("general.type", STRING, "mmproj")
    model.put("general.name", STRING, "tiny-random-clip")
    model.put("general.file_type", U32, 0)
    model.put("clip.has_vision_encoder", BOOL, True)
    model.put("clip.projector_type", STRING, "mlp")
    model.put("clip.use_gelu", BOOL, True)
    sizes = {
        "image_size": IMAGE, "patch_size": PATCH, "embedding_length": VISION_WIDTH, "block_count": VISION_LAYERS,
        "feed_forward_length": VISION_FORWARD, "attention.head_count": VISION_HEADS, "projection_dim": WIDTH,
    }
    model.put_numbers("clip.vision", **sizes)
    model.put("clip.vision.attention.layer_norm_epsilon", F32, 1e-5)
    model.put_array("clip.vision.image_mean", F32, [0.5] * 3)
    model.put_array("clip.vision.image_std", F32, [0.5] * 3)
    model.weights("v.class_embd", VISION_WIDTH)
    model.weights("v.patch_embd.weight", PATCH, PATCH, 3, VISION_WIDTH)
    model.weights("v.position_embd.weight", VISION_WIDTH, (IMAGE // PATCH) ** 2 + 1)
    for name in ("v.pre_ln", "v.post_ln"):
        model.norm(name, VISION_WIDTH)
    for layer in range(VISION_LAYERS):
        block = f"v.blk.{layer}."
        for name in ("ln1", "ln2"):
            model.norm(block + name, VISION_WIDTH)
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            model.linear(block + name, VISION_WIDTH, VISION_WIDTH)
        model.linear(block + "ffn_up", VISION_WIDTH, VISION_FORWARD)
        model.linear(block + "ffn_down", VISION_FORWARD, VISION_WIDTH)
    model.linear("mm.0", VISION_WIDTH, WIDTH)
    model.linear("mm.2", WIDTH, WIDTH)
    model.write(path)
