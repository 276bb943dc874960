# Prints the paths of this interpreter and its own files as one line of JSON. It runs outside the sandbox. It does not use
# sys.path, to which .pth files, for example of editable installs, add the user's own folders.
import json, os, site, sys, sysconfig

prefixes = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
paths = sysconfig.get_paths()
folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
folders += getattr(site, "getsitepackages", list)()
files = [os.path.join(os.path.dirname(sys.executable), *up, "pyvenv.cfg") for up in ((), ("..",))]
for lib in {"lib", getattr(sys, "platlibdir", "lib")}:
    lib = os.path.join(sys.base_exec_prefix, lib)
    # The standard library may be a zip file. Of the other files, only shared libraries are needed.
    files.append(os.path.join(lib, "python%d%d.zip" % sys.version_info[:2]))
    if os.path.isdir(lib):
        files += [os.path.join(lib, name) for name in os.listdir(lib) if ".so" in name]
print()
print(json.dumps({
    "python": sys.executable,
    "prefixes": prefixes,
    "folders": folders,
    "files": sorted(os.path.realpath(path) for path in files if os.path.isfile(path)),
}))
