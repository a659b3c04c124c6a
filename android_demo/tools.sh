# What build_apk.sh and check.sh share: where things lie, what is fetched and how, the compilers.
# Downloads stay in android_demo/build. To be sourced from android_demo/.
build=$PWD/build tools=$PWD/build/tools
mkdir -p "$tools"
step() { printf '\n== %s\n' "$*"; }

# Third-party packages that hold what Google and Maven Central would give, by version and sha256.
KOTLIN=kotlin-compiler@2.4.20
ORT=com.github.asus4.onnxruntime@0.4.9 # ONNX Runtime 1.29.0's AAR
EXECUTORCH=react-native-executorch@0.8.5
REACT=react-native@0.67.5 # libfbjni.so, which ExecuTorch's library calls
API36=chaquopy-stubs-android==36.20260406
SHA256="
c23dab400d7ce5ea8b6c909947c0ca5454189e4bb1108695b5f464500e5e950f  kotlin.tgz
e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d  ort.tgz
4a1f84df51d75000dd5c28ad11fedd5ec0487f8b8189e8adcb001b9ca485c4b8  executorch.tgz
93d8e3a74bf3389967dc08df2f987e6408dfb81b53d3c7737dbae62403933348  react.tgz
"

programs() { # name of a program, or path of a file: Debian package that has it
    local needed=() pair
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || [ -e "${pair%%:*}" ] || needed+=("${pair##*:}")
    done
    [ ${#needed[@]} -gt 0 ] || return 0
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${needed[@]}" >/dev/null
}

find_python() { # $python: one that can export
    python=$(command -v python3)
    "$python" -c 'import hrm_edge.export, jinja2, onnx_ir, safetensors' 2>/dev/null && return
    "$python" -c 'import ensurepip' 2>/dev/null || programs none:python3-venv
    [ -x "$tools/venv/bin/pip" ] || python3 -m venv --clear "$tools/venv"
    python=$tools/venv/bin/python
    "$python" -m pip install -q -e '..[export]'
}

pack() { # package, file, members to unpack
    [ -d "$tools/${2%.tgz}" ] && return
    local scratch
    scratch=$(mktemp -d -p "$tools")
    (cd "$scratch" && { npm pack "$1" >npm.log 2>&1 || { cat npm.log >&2; exit 1; }; } && mv ./*.tgz "$2")
    (cd "$scratch" && grep " $2$" <<<"$SHA256" | sha256sum --check --quiet)
    mkdir "$scratch/unpacked"
    tar xzf "$scratch/$2" -C "$scratch/unpacked" --strip-components 1 "${@:3}"
    mv "$scratch/unpacked" "$tools/${2%.tgz}"
    rm -r "$scratch"
}

debian() { # suite, packages: what only another suite than this system's has
    [ -d "$tools/$1" ] && return
    local apt=$tools/apt-$1 site
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    site=$(apt-get indextargets --format '$(SITE)' | awk '/\/debian\/*$/ {site = $0} END {print site}')
    [ -n "$site" ] || { echo "Android's stubs come from Debian; this system has no such source"; return 1; }
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site $1 main" >"$apt/sources.list"
    local options=(-o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o Dir::State::status=/dev/null
        -o APT::Sandbox::User=root -o Acquire::Languages=none
        -o Acquire::Check-Valid-Until=false) # a mirror may lag behind
    apt-get "${options[@]}" update -qq
    (cd "$apt" && apt-get "${options[@]}" download -qq "${@:2}")
    for deb in "$apt"/*.deb; do dpkg -x "$deb" "$apt/unpacked"; done
    mv "$apt/unpacked" "$tools/$1"
    rm -r "$apt"
}

in_parallel() { # commands, of a word each
    local jobs=() job
    for job in "$@"; do $job & jobs+=($!); done
    for job in "${jobs[@]}"; do wait "$job"; done
}
kotlin_package() { pack $KOTLIN kotlin.tgz package/lib package/license/LICENSE.txt package/license/NOTICE.txt; }
ort_package() {
    pack $ORT ort.tgz package/Plugins/Android package/LICENSE package/ThirdPartyNotices.txt
    [ -d "$tools/aar" ] && return
    mkdir -p "$tools/aar.partial"
    (cd "$tools/aar.partial" && jar xf "$tools/ort/Plugins/Android/onnxruntime.aar" classes.jar jni/{x86_64,arm64-v8a})
    mv "$tools/aar.partial" "$tools/aar"
}
executorch_package() {
    pack $EXECUTORCH executorch.tgz package/android/libs/classes.jar \
        package/third-party/android/libs/executorch/x86_64
}
stubs() { debian sid libandroid-23-java android-framework-res; }

stdlib=$tools/kotlin/lib/kotlin-stdlib.jar
android=$tools/sid/usr/share/java/com.android.android-23.jar
libraries=$tools/aar/classes.jar:$tools/executorch/android/libs/classes.jar
kotlinc() {
    java -Xmx1200m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$tools/kotlin/lib/*" \
        org.jetbrains.kotlin.cli.jvm.K2JVMCompiler -kotlin-home "$tools/kotlin" \
        -jvm-target 1.8 -jvm-default=disable -no-reflect -no-stdlib "$@"
}
