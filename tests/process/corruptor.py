# SPDX-License-Identifier: Apache-2.0
"""Makes broken and hostile segments: a table of named kinds, each with what the exporter is to say of it.

Each begins as an image that a writer made through the ABI, and fails exactly one check where that is possible, so that
a check that is missing is seen. What a kind needs besides its one fault is made good: a section that must be in the
wrong place has nobody else there.
"""

import dataclasses
import os
import socket
import struct

from abi_helpers import Writer

RANK, FRONTEND = 1, 2
LIVE, TOTALS, EPLB, DBO, RANK_TOKENS, EXPERT_TOKENS = range(1, 7)
UNKNOWN = 99  # a type of section that readers skip
# Offsets in the identity, of the section table and of the models.
MAJOR, MINOR, ENDIAN, WORD_BITS, TOTAL_SIZE, IDENTITY_SIZE, SECTION_COUNT, SECTION_SIZE = 8, 12, 16, 20, 24, 32, 36, 40
MODEL_COUNT, MODEL_SIZE, ROLE, ENGINE, NUMBER, EP_SIZE, TP_RANK = 44, 48, 52, 56, 60, 64, 68
GROUP, INSTANCE_ID, LINEAGE, START = 88, 96, 104, 136
INSTANCE_LENGTH, INSTANCE, RESERVED, SECTIONS, MODELS = 164, 168, 232, 256, 768
NAME_LENGTH, LAYERS, LOGICAL, PHYSICAL, EP_RANKS = range(MODELS + 256, MODELS + 276, 4)
# Offsets in a section's row.
TYPE, STRIDE, OFFSET, LENGTH, COUNT, BATCH = 0, 4, 8, 16, 24, 28
PAGE, LAST, MAX_SIZE, TOP = 4096, -1, 1 << 30, 0xFFFFFFFF
MODEL, PASSES = b"hostile", 20


def take_image(directory):
    """A dead rank's segment: two layers, 4 experts, 20 passes, as many DBO passes, some tokens."""
    with Writer() as writer:
        assert writer.create(directory, ((MODEL, 2, 4, 4),), engine=1, ep=2)[0] == 0
        assert writer.ask("pass", 0, 0, 7, 0, 1, PASSES) == 0
        for number in range(PASSES):
            assert writer.ask("dbo", number, number % 2, number % 6, 2, 10, 3) == 0
        assert writer.ask("tokens", 1000, 100) == 0
    return (directory / "wideep.default.e1.r0").read_bytes()


class Image:
    """A private copy of the image, as another engine's and with ids of its own."""

    def __init__(self, data, engine):
        self.data = bytearray(data)
        self.engine, self.size = engine, None  # size: of the file, where it is not the image's
        self.poke("I", ENGINE, engine)
        self.poke("Q", INSTANCE_ID, engine)
        self.poke("Q", LINEAGE, engine)

    def peek(self, form, at):
        return struct.unpack_from("=" + form, self.data, at)[0]

    def poke(self, form, at, value):
        struct.pack_into("=" + form, self.data, at, value)

    def row(self, kind):
        """Where the section's row of the table is."""
        for i in range(self.peek("I", SECTION_COUNT)):
            if self.peek("I", SECTIONS + 32 * i) == kind:
                return SECTIONS + 32 * i
        raise KeyError(kind)

    def section(self, kind, field):
        return self.peek("Q" if field in (OFFSET, LENGTH) else "I", self.row(kind) + field)

    def set(self, kind, field, value):
        self.poke("Q" if field in (OFFSET, LENGTH) else "I", self.row(kind) + field, value)

    def grow(self, size=PAGE):
        """Room at the end that nobody uses; returns where."""
        at = len(self.data)
        self.data += bytes(size)
        self.poke("Q", TOTAL_SIZE, len(self.data))
        return at

    def add_section(self, kind, offset, length):
        count = self.peek("I", SECTION_COUNT)
        struct.pack_into("=IIQQII", self.data, SECTIONS + 32 * count, kind, 0, offset, length, 1, 0)
        self.poke("I", SECTION_COUNT, count + 1)

    def slot(self, kind, n):
        """Where record n is; -1: the newest."""
        at, stride, count = (self.section(kind, field) for field in (OFFSET, STRIDE, COUNT))
        return at + 128 + (n if n >= 0 else self.peek("Q", at) + n) % count * stride

    def word(self, kind, index):
        """Where the word of a section is."""
        return self.section(kind, OFFSET) + 8 * index

    @property
    def name(self):
        role = "fe" if self.peek("I", ROLE) == FRONTEND else "r"
        return f"wideep.default.e{self.peek('I', ENGINE)}.{role}{self.peek('I', NUMBER)}"


def write_file(path, image):
    with open(path, "wb") as file:
        file.write(image.data)
        if image.size is not None:
            file.truncate(image.size)


@dataclasses.dataclass
class Kind:
    """`reason`: of the refusal, None: it is served. `spoil` changes the image, `place` makes the file; `name`: its
    name, where that is not the identity's. `lost`: (kind, number) of records that it costs as invalid. `dump`: what wideep-dump says, which
    knows neither the owners that are listed nor the name that it should have."""
    reason: str = None
    spoil: object = lambda image: None
    place: object = write_file
    name: str = None
    lost: tuple = None
    dump: object = dataclasses.field(default=...)
    locked: bool = False
    state: str = "rejected"

    def __post_init__(self):
        if self.dump is ...:
            self.dump = self.reason


KINDS = {}


def add(title, reason=None, spoil=lambda image: None, **fields):
    assert title not in KINDS, title
    KINDS[title] = Kind(reason, spoil, **fields)


def poking(form, at, value):
    return lambda image: image.poke(form, at, value)


def setting(kind, field, value):
    return lambda image: image.set(kind, field, value)


def adding(kind, offset, length):
    """A section in room of its own; `offset` is relative to its beginning where it is not callable."""
    def spoil(image):
        at = image.grow()
        image.add_section(kind, offset(image) if callable(offset) else at + offset, length)
    return spoil


def both(*spoils):
    def spoil(image):
        for one in spoils:
            one(image)
    return spoil


# ---- sizes ----------------------------------------------------------------------------------------------------

def cut(size):
    """Shortened to so many bytes; a negative number is so many less."""
    def spoil(image):
        image.size = size(image) if callable(size) else size if size >= 0 else len(image.data) + size
    return spoil


def huge(image):
    image.size = MAX_SIZE + 1


add("empty", "empty", cut(0))
for _size in (1, 8, MODELS, 1920, PAGE - 1):
    add(f"cut to {_size} bytes", "truncated", cut(_size))
for _kind in (LIVE, TOTALS, EPLB, DBO, RANK_TOKENS, EXPERT_TOKENS):
    add(f"cut before section {_kind}", "truncated", cut(lambda image, kind=_kind: image.section(kind, OFFSET)))
    add(f"cut in section {_kind}", "truncated", cut(lambda image, kind=_kind: image.section(kind, OFFSET) + 8))
add("one byte short", "truncated", cut(-1))
add("says one byte more", "truncated", lambda image: image.poke("Q", TOTAL_SIZE, len(image.data) + 1))
add("larger than any", "bad_size", huge)
add("says less than a page", "bad_size", poking("Q", TOTAL_SIZE, PAGE - 1))
add("says nothing", "bad_size", poking("Q", TOTAL_SIZE, 0))
add("says more than any", "bad_size", poking("Q", TOTAL_SIZE, MAX_SIZE + 1))
add("says all there is", "bad_size", poking("Q", TOTAL_SIZE, 2**64 - 1))
for _at, _what in ((IDENTITY_SIZE, "identity"), (SECTION_SIZE, "section"), (MODEL_SIZE, "model")):
    add(f"structure {_what} of no size", "bad_size", poking("I", _at, 0))

# ---- what it is -------------------------------------------------------------------------------------------------

add("wrong magic", "bad_magic", poking("B", 7, 0x6E))
add("wrong endian", "bad_endian", poking("I", ENDIAN, 0x04030201))
add("wrong word size", "bad_word_size", poking("I", WORD_BITS, 32))
add("another major version", "bad_version", poking("I", MAJOR, 2))
add("no version", "bad_version", poking("I", MAJOR, 0))
add("newer minor version", None, poking("I", MINOR, TOP))
add("reserved words used", None, both(*(poking("Q", RESERVED + 8 * i, 2**64 - 1) for i in range(3))))
add("unknown section", None, adding(UNKNOWN, 64, 64))

# ---- numbers ----------------------------------------------------------------------------------------------------

for _role in (0, 3, TOP):
    add(f"role {_role}", "bad_limit", poking("I", ROLE, _role), name=f"wideep.default.e904{_role}.r0")
for _count in (17, TOP):
    add(f"{_count} sections", "bad_limit", poking("I", SECTION_COUNT, _count))
add("no sections", "bad_section", poking("I", SECTION_COUNT, 0))
for _count in (0, 5, TOP):
    add(f"{_count} models", "bad_limit", poking("I", MODEL_COUNT, _count))
add("engine too high", "bad_limit", poking("I", ENGINE, 65536))
add("frontend too high", "bad_limit", both(poking("I", ROLE, FRONTEND), poking("I", NUMBER, 65536)))
add("tensor-parallel rank too high", "bad_limit", poking("I", TP_RANK, 65536))
add("no ranks", "bad_limit", both(poking("I", EP_SIZE, 0), poking("I", EP_RANKS, 0)))
add("too many ranks", "bad_limit",
    both(poking("I", EP_SIZE, 1025), poking("I", EP_RANKS, 1025), poking("I", PHYSICAL, 1025)))
add("rank beyond the group", "bad_limit", poking("I", NUMBER, 2))
add("too many layers", "bad_limit", poking("I", LAYERS, 513))
add("too many experts", "bad_limit", poking("I", LOGICAL, 4097))
add("too many physical experts", "bad_limit", poking("I", PHYSICAL, 8194))
add("a model of another group size", "bad_limit", poking("I", EP_RANKS, 1))
add("no experts", "bad_limit", poking("I", LOGICAL, 0))
add("no physical experts", "bad_limit", poking("I", PHYSICAL, 0))
add("experts that do not divide", "bad_limit", poking("I", PHYSICAL, 5))
add("layers of -1", "bad_limit", poking("I", LAYERS, TOP))

# ---- names ------------------------------------------------------------------------------------------------------

add("model name without end", "bad_name", lambda image: image.data.__setitem__(slice(MODELS, MODELS + 256), b"x" * 256))
add("model name of nothing", "bad_name", both(poking("I", NAME_LENGTH, 0), poking("B", MODELS, 0)))
add("model name of -1", "bad_name", poking("I", NAME_LENGTH, TOP))
add("model name beyond its terminator", "bad_name", poking("I", NAME_LENGTH, len(MODEL) - 1))
add("model name of no UTF-8", None, lambda image: image.data.__setitem__(slice(MODELS, MODELS + 4), b"\xff\xc0\x80\0"))
add("instance without end", "bad_name", poking("I", INSTANCE_LENGTH, 3))
add("instance of -1", "bad_name", poking("I", INSTANCE_LENGTH, TOP))
add("instance of nothing", "bad_name", both(poking("I", INSTANCE_LENGTH, 0), poking("B", INSTANCE, 0)))
add("instance with a slash", "bad_name", poking("B", INSTANCE, ord("/")))
add("instance with a dot first", "bad_name", poking("B", INSTANCE, ord(".")))

# ---- sections ---------------------------------------------------------------------------------------------------

add("section misaligned", "bad_section", adding(UNKNOWN, 8, 64))
add("section in the identity", "bad_section", adding(UNKNOWN, lambda image: 2048, 64))
add("section past the end", "bad_section", adding(UNKNOWN, PAGE + 64, 64))
add("section at -64", "bad_section", adding(UNKNOWN, lambda image: 2**64 - 64, 64))
add("section over the end", "bad_section", adding(UNKNOWN, PAGE - 64, 128))
add("section of length 0", "bad_section", adding(UNKNOWN, 64, 0))
add("section of length -1", "bad_section", adding(UNKNOWN, 64, 2**64 - 1))
add("section over another", "bad_section", adding(UNKNOWN, lambda image: image.section(LIVE, OFFSET), 64))
add("section around another", "bad_section",
    lambda image: (image.grow(), image.add_section(UNKNOWN, PAGE, len(image.data) - PAGE)))
add("section twice", "bad_section", adding(LIVE, 64, 320))
for _kind in (LIVE, TOTALS, EPLB, RANK_TOKENS, EXPERT_TOKENS):
    add(f"section {_kind} missing", "bad_section", setting(_kind, TYPE, UNKNOWN))
add("no experts and no rings", None, both(*(poking("I", at, 0) for at in (LAYERS, LOGICAL, PHYSICAL)),
                                          *(setting(kind, TYPE, UNKNOWN) for kind in (EPLB, RANK_TOKENS, EXPERT_TOKENS))))


def reverse_sections(image):
    rows = [image.data[at:at + 32] for at in range(SECTIONS, SECTIONS + 32 * image.peek("I", SECTION_COUNT), 32)]
    image.data[SECTIONS:SECTIONS + 32 * len(rows)] = b"".join(reversed(rows))


add("sections in another order", None, reverse_sections)
add("DBO ring missing", None, setting(DBO, TYPE, UNKNOWN))
for _kind in (LIVE, TOTALS, RANK_TOKENS, EXPERT_TOKENS):
    add(f"section {_kind} short", "bad_section",
        lambda image, kind=_kind: image.set(kind, LENGTH, {LIVE: 312, TOTALS: 1656}.get(kind) or
                                            {RANK_TOKENS: 2 * 2 * 8, EXPERT_TOKENS: 2 * 4 * 8}[kind] - 8))


def move_ring(slots, more=0, batch=None):
    """The EPLB ring where there is room for as many slots, and so many bytes more."""
    def spoil(image):
        stride, end = image.section(EPLB, STRIDE), len(image.data)
        image.set(EPLB, OFFSET, end)
        image.set(EPLB, COUNT, slots)
        image.set(EPLB, LENGTH, 128 + slots * stride + more)
        if batch is not None:
            image.set(EPLB, BATCH, batch)
        image.data += bytes(PAGE)
        image.size = end + 128 + slots * stride + more
        image.poke("Q", TOTAL_SIZE, image.size)
    return spoil


add("stride of 0", "bad_section", setting(EPLB, STRIDE, 0))
add("stride of -1", "bad_section", setting(DBO, STRIDE, TOP))
add("no slots", "bad_section", move_ring(0, batch=0))
add("slots of -1", "bad_section", setting(DBO, COUNT, TOP))
add("more slots than any", "bad_section", move_ring((64 << 20) // 128 + 1))
add("slots that do not fill the ring", "bad_section", move_ring(256, more=64))
add("batch of 0", "bad_section", setting(EPLB, BATCH, 0))
add("batch over the ring", "bad_section", lambda image: image.set(EPLB, BATCH, image.section(EPLB, COUNT) + 1))
add("batch over a pass", "bad_section", move_ring(1024, batch=513))
add("batch of a DBO ring", "bad_section", setting(DBO, BATCH, 2))

# ---- as far as it goes: each number at its limit is served --------------------------------------------------------


def at_limits(ep_size=2, layers=2, logical=4, physical=4):
    """A group and a model of these sizes, with planes and a ring to go with them."""
    def spoil(image):
        for at, value in ((EP_SIZE, ep_size), (EP_RANKS, ep_size), (LAYERS, layers), (LOGICAL, logical),
                          (PHYSICAL, physical)):
            image.poke("I", at, value)
        for kind, words in ((RANK_TOKENS, layers * ep_size), (EXPERT_TOKENS, layers * logical)):
            image.set(kind, OFFSET, image.grow(-(-words * 8 // PAGE) * PAGE))
            image.set(kind, LENGTH, words * 8)
        image.set(EPLB, STRIDE, -(-(64 + 4 * ep_size) // 64) * 64)
        move_ring(4, batch=1)(image)
        image.data[image.section(EPLB, OFFSET):] = bytes(len(image.data) - image.section(EPLB, OFFSET))
    return spoil


def name_model(name):
    return both(poking("I", NAME_LENGTH, len(name)),
                lambda image: image.data.__setitem__(slice(MODELS, MODELS + len(name) + 1), name + b"\0"))


def more_models(image):
    image.poke("I", MODEL_COUNT, 4)
    size = image.peek("I", MODEL_SIZE)
    for i in range(1, 4):
        row = MODELS + i * size
        image.data[row:row + size] = image.data[MODELS:MODELS + size]
        image.data[row] += i  # another name
        image.poke("I", row + LAYERS - MODELS, 0)


def more_sections(image):
    at = image.grow()
    for i in range(16 - image.peek("I", SECTION_COUNT)):
        image.add_section(UNKNOWN, at + 64 * i, 8)


def page_alone(image):
    image.poke("Q", TOTAL_SIZE, PAGE)
    image.size = PAGE


def largest(image):
    image.poke("Q", TOTAL_SIZE, MAX_SIZE)
    image.size = MAX_SIZE


def without_records(image):
    image.poke("Q", image.word(EPLB, 0), 0)


# What a front end's table says of experts sizes nothing.
add("front end", None, both(without_records, poking("I", ROLE, FRONTEND), poking("I", EP_SIZE, 0), poking("I", LAYERS, TOP),
                            setting(RANK_TOKENS, TYPE, UNKNOWN), setting(EXPERT_TOKENS, TYPE, UNKNOWN)))
add("front end 65535", None, both(without_records, poking("I", ROLE, FRONTEND), poking("I", NUMBER, 65535)))
add("engine 65535", None, poking("I", ENGINE, 65535))
add("tensor-parallel rank 65535", None, poking("I", TP_RANK, 65535))
add("a page and no more", "bad_section", page_alone)
add("as large as any", None, largest)
add("sixteen sections", None, more_sections)
add("four models", None, more_models)
add("one of each", None, both(at_limits(1, 1, 1, 1), name_model(b"m")))
add("1024 ranks", None, at_limits(ep_size=1024, physical=1024))
add("512 layers", None, at_limits(layers=512))
add("as many experts as any", None, at_limits(logical=4096, physical=8192))
add("model name of 255 bytes", None, name_model(b"n" * 255))
add("section to the end", None, adding(UNKNOWN, PAGE - 64, 64))
add("section of a word", None, adding(UNKNOWN, 64, 8))
add("section of less than a word", "bad_section", adding(UNKNOWN, 64, 7))
add("section of type 0", None, adding(0, 64, 8))
add("ring of a slot", None, move_ring(1, batch=1))
add("ring as large as any", None, move_ring((64 << 20) // 128))


# ---- files ------------------------------------------------------------------------------------------------------


def place_socket(path, _):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def place_link(path, image):
    """Another name of a segment, which is good under its own."""
    write_file(path, image)
    os.link(path, path.with_name(image.name))


def place_for(owner, mode):
    def place(path, image):
        write_file(path, image)
        if owner is not None:
            os.chown(path, owner, -1)
        path.chmod(mode)
    return place


def place_device(path, _):
    os.mknod(path, 0o020644, os.makedev(1, 5))  # /dev/zero


add("symbolic link", "not_regular", place=lambda path, image: path.symlink_to("wideep.default.e0.r0"))
add("link to nothing", "not_regular", place=lambda path, image: path.symlink_to("nowhere"))
add("directory", "not_regular", place=lambda path, image: path.mkdir())
add("FIFO", "not_regular", place=lambda path, image: os.mkfifo(path))
add("socket", "not_regular", place=place_socket)
add("hard link", "name_mismatch", place=place_link, name="wideep.default.e90200.r0", dump=None)
add("unreadable", "unreadable", place=place_for(None, 0), dump="Permission denied")
if os.geteuid() == 0:
    add("device", "not_regular", place=place_device)
    add("owner that is not listed", "owner", place=place_for(12345, 0o644), dump=None)
for _name in ("wideep.", "wideep.x", "wideep.nonsense.r0", "wideep.e1.r0", "wideep..e1.r0", "wideep.default.e1",
              "wideep.default.e1.", "wideep.default.e1.r", "wideep.default.e1.x0", "wideep.default.e1.f0",
              "wideep.default.e1.fe", "wideep.default.e1.r0x", "wideep.default.e.r0", "wideep.default.1.r0",
              "wideep.default.x1.r0", "wideep.defaulte1.r0", "wideep.de fault.e1.r0", "wideep..dot.e1.r0",
              "wideep.`.e1.r0", "wideep.{.e1.r0",
              "wideep.@.e1.r0", "wideep.[.e1.r0", "wideep.:.e1.r0", "wideep." + "l" * 64 + ".e1.r0"):
    add(f"file {_name}", "bad_name", name=_name, dump=None)
add("name of another engine", "name_mismatch", name="wideep.default.e90000.r0", dump=None)
add("name with a zero", "name_mismatch", name="wideep.default.e01.r0", dump=None)
add("name of a front end", "name_mismatch", name="wideep.default.e90100.fe0", dump=None)
add("name of another instance", "other_instance", name="wideep.other.e1.r0", dump=None, state="ignored")
add("name of an instance of all characters", "other_instance", name="wideep.o.aAzZ09_-.e1.r0", dump=None, state="ignored")
add("instance of 63 characters", "other_instance", lambda image: (
    image.poke("I", INSTANCE_LENGTH, 63), image.data.__setitem__(slice(INSTANCE, INSTANCE + 64), b"l" * 63 + b"\0")),
    name="wideep." + "l" * 63 + ".e1.r0", dump=None, state="ignored")
add("identity of another instance", "name_mismatch", lambda image: image.data.__setitem__(
    slice(INSTANCE, INSTANCE + 7), b"another"), name="wideep.default.e90300.r0", dump=None)

# ---- contents: what is served all the same ----------------------------------------------------------------------

add("lock of a stranger", locked=True)
add("lock of a stranger on a bad one", "bad_magic", poking("B", 0, 0), locked=True)
NOTHING, INFINITE = float("nan"), float("inf")


def newest(kind, form, at, value):
    return lambda image: image.poke(form, image.slot(kind, LAST) + at, value)


def whole_pass(form, at, value):
    """In both records of the newest."""
    return lambda image: [image.poke(form, image.slot(EPLB, record) + at, value) for record in (LAST, LAST - 1)]


def tagged(kind, byte, value):
    return newest(kind, "B", 24 + byte, value)


# The newest record is the second of its pass, whose first is lost with it.
_EPLB = {
    "number from the future": newest(EPLB, "Q", 0, 2**40),
    "number half written": newest(EPLB, "Q", 0, 2 * 2 * PASSES - 1),
    "number of -1": newest(EPLB, "Q", 0, 2**64 - 1),
    "pass too high": newest(EPLB, "Q", 8, 2**63),
    "model beyond": tagged(EPLB, 0, 255),
    "model of a row that does not count": both(poking("I", LAYERS + 288, 2), tagged(EPLB, 0, 1)),
    "flags of neither kind": tagged(EPLB, 1, 16),
    "flags of both kinds": tagged(EPLB, 1, 16 | 3),
    "layer beyond": tagged(EPLB, 2, 2),
    "average of NaN": newest(EPLB, "d", 32, NOTHING),
    "average negative": newest(EPLB, "d", 32, -1.0),
    "average over the maximum": both(newest(EPLB, "d", 32, 1e6), newest(EPLB, "d", 40, 1.0)),
    "maximum of NaN": newest(EPLB, "d", 40, NOTHING),
    "maximum infinite": newest(EPLB, "d", 40, INFINITE),
    "balancedness negative": newest(EPLB, "d", 48, -0.5),
    "balancedness over 1": newest(EPLB, "d", 48, 1.5),
    "balancedness of NaN": newest(EPLB, "d", 48, NOTHING),
    "first record twice": tagged(EPLB, 1, 16 | 8 | 2),
    "layers descending": newest(EPLB, "H", 26, 0),
    "step of another": newest(EPLB, "I", 28, 99),
    "pass of another": newest(EPLB, "Q", 8, 5),
    "pass without end": tagged(EPLB, 1, 2),
}
for _name, _spoil in _EPLB.items():
    add("EPLB " + _name, spoil=_spoil, lost=("eplb", 2))
_DBO = {
    "number from the future": newest(DBO, "Q", 0, 2**40),
    "pass too high": newest(DBO, "Q", 8, 2**63),
    "phase beyond": tagged(DBO, 0, 2),
    "outcome beyond": tagged(DBO, 3, 6),
    "reason beyond": tagged(DBO, 4, 4),
    "ubatches beyond": tagged(DBO, 5, 5),
}
for _name, _spoil in _DBO.items():
    add("DBO " + _name, spoil=_spoil, lost=("dbo", 1))
add("EPLB highest pass", spoil=whole_pass("Q", 8, 2**63 - 1))
add("EPLB no load", spoil=both(*(whole_pass("d", at, 0.0) for at in (32, 40, 48))))
add("EPLB even load", spoil=both(*(whole_pass("d", at, 5.0) for at in (32, 40)), whole_pass("d", 48, 1.0)))
add("EPLB highest load", spoil=whole_pass("d", 40, 1e18))
add("DBO highest pass", spoil=newest(DBO, "Q", 8, 2**63 - 1))
add("DBO four ubatches", spoil=tagged(DBO, 5, 4))
add("EPLB head in heaven", spoil=lambda image: image.poke("Q", image.word(EPLB, 0), 2**40), lost=("eplb", 1))
add("DBO head in heaven", spoil=lambda image: image.poke("Q", image.word(DBO, 0), 2**40), lost=("dbo", 1))
add("EPLB head of -1", spoil=lambda image: image.poke("Q", image.word(EPLB, 0), 2**64 - 1), lost=("eplb", None))
add("DBO head of -1", spoil=lambda image: image.poke("Q", image.word(DBO, 0), 2**64 - 1), lost=("dbo", None))
add("EPLB head beyond", spoil=lambda image: image.poke("Q", image.word(EPLB, 0), 10000), lost=("eplb", None))
add("DBO head beyond", spoil=lambda image: image.poke("Q", image.word(DBO, 0), 10000), lost=("dbo", None))
add("EPLB times from the future", spoil=newest(EPLB, "Q", 16, 2**64 - 1))
add("live words of -1", locked=True,
    spoil=lambda image: [image.poke("Q", image.word(LIVE, i), 2**64 - 1) for i in range(40) if i != 1])
add("live times from the future", locked=True,
    spoil=lambda image: [image.poke("Q", image.word(LIVE, i), 2**62) for i in (4, 9, 10, 14)])
add("totals of -1", locked=True,
    spoil=lambda image: [image.poke("Q", image.word(TOTALS, i), 2**64 - 1) for i in range(1664 // 8)])
add("planes of -1", locked=True,
    spoil=lambda image: [image.poke("Q", image.word(kind, i), 2**64 - 1)
                         for kind, count in ((RANK_TOKENS, 4), (EXPERT_TOKENS, 8)) for i in range(count)])
add("started in the future", locked=True, spoil=poking("Q", START, 2**64 - 1))


# Two live ranks, 0 and 1, of one engine and group: what the second has instead, and why it is refused.
PAIRS = {
    "group sizes differ": (both(poking("I", EP_SIZE, 4), poking("I", EP_RANKS, 4),
                                lambda image: image.set(RANK_TOKENS, OFFSET, image.grow()),
                                setting(RANK_TOKENS, LENGTH, 64)), None),
    "layers differ": (poking("I", LAYERS, 1), None),
    "groups differ": (poking("Q", GROUP, 1), None),
    "EP rank twice": (both(poking("I", NUMBER, 0), lambda image: image.poke("I", ENGINE, image.engine + 1),
                           poking("Q", INSTANCE_ID, 2**64 - 1)), "duplicate_ep_rank"),
}
