"""Lets PyPI's torch, built for CUDA, load without NVIDIA's packages: writes a library that does nothing for every one of
NVIDIA's that torch needs, with the names and versions it wants of it. For work on a CPU only.

usage: stub_libraries.py SITE_PACKAGES/torch/lib     (needs gcc and readelf)
"""

import glob
import os
import re
import subprocess
import sys
import tempfile

SYSTEM = re.compile(r"^(lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|util)\.so|ld-linux)")
SYSTEM_VERSIONS = ("GLIBC", "GCC", "CXXABI", "GOMP")
# A function's name that C can spell; those of C++'s own library are found in libstdc++ first.
SPELLABLE = re.compile(r"^(?!_ZN?K?St)[A-Za-z_]\w*$")


class Wanted:
    """What the libraries of a folder need of others."""

    def __init__(self, folder):
        self.libraries, self.versions, self.undefined, defined = set(), {}, {}, set()
        files = glob.glob(folder + "/*.so*")
        for file in files:
            self.libraries |= set(re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("-d", file)))
            self.read_versions(file)
            for name, version, is_defined in symbols(file):
                if is_defined:
                    defined.add(name)
                else:
                    self.undefined.setdefault(name, version)
        self.libraries -= {os.path.basename(file) for file in files}
        self.undefined = {
            name: version
            for name, version in self.undefined.items()
            if name not in defined and not version.startswith(SYSTEM_VERSIONS)
        }

    def read_versions(self, file):
        library = None
        for line in readelf("-V", file).splitlines():
            if found := re.search(r"File: (\S+)", line):
                library = found[1]
            elif library and (found := re.search(r"Name: (\S+)\s+Flags", line)):
                self.versions.setdefault(library, set()).add(found[1])

    def names_of(self, library):
        """The wanted names of a library, by version; names without one are taken for the CUDA runtime's."""
        names = {}
        for name, version in self.undefined.items():
            if version in self.versions.get(library, ()) or (not version and library.startswith("libcudart")):
                names.setdefault(version, []).append(name)
        return names


def readelf(option, file):
    return subprocess.run(["readelf", option, "-W", file], capture_output=True, text=True, check=True).stdout


def symbols(file):
    """Names of other libraries and for them: name, version, whether it is defined here."""
    for line in readelf("--dyn-syms", file).splitlines():
        fields = line.split()
        if len(fields) < 8 or fields[4] not in ("GLOBAL", "WEAK"):
            continue
        name, _, version = fields[7].partition("@")
        is_defined = fields[6] != "UND"
        if is_defined or fields[4] == "GLOBAL":
            yield name, version.lstrip("@"), is_defined


def function(name):
    if name == "cudaGetDeviceCount":
        return "int cudaGetDeviceCount(int *count) { *count = 0; return 100; /* cudaErrorNoDevice */ }"
    return f"long {name}(void) {{ return 0; }}"


def compile_stub(path, names):
    library = os.path.basename(path)
    functions = [function(name) for versioned in names.values() for name in versioned if SPELLABLE.match(name)]
    versions = [f"{version} {{ global: {'; '.join(named)}; }};" for version, named in names.items() if version]
    with tempfile.TemporaryDirectory() as folder:
        source, script = os.path.join(folder, "stub.c"), os.path.join(folder, "stub.map")
        with open(source, "w") as file:
            file.write("\n".join(functions) + "\n")
        command = ["gcc", "-w", "-fno-builtin", "-shared", "-fPIC", "-o", path, source, "-Wl,-soname," + library]
        if versions:
            with open(script, "w") as file:
                file.write("\n".join(versions))
            command.append("-Wl,--version-script=" + script)
        subprocess.run(command, check=True)


def main(folder):
    wanted = Wanted(folder)
    for library in sorted(wanted.libraries):
        if not SYSTEM.match(library):
            compile_stub(os.path.join(folder, library), wanted.names_of(library))


main(*sys.argv[1:])
