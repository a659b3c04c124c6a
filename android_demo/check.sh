#!/usr/bin/env bash
# Everything about the app that can be checked without Android's SDK, Gradle and a device.
#
#   bash android_demo/check.sh
#
# Compiles each line of Kotlin against Android's stubs and the libraries' real classes, links
# resources and manifest, looks up all that the app names in API 36, and runs the core and the ONNX
# engine on this machine's JVM through the AAR's own JNI library. Installs what it needs from
# Debian, npm and PyPI; downloads stay in android_demo/build.
set -euo pipefail
cd "$(dirname "$0")"
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

step "Tools"
needed=()
command -v javac >/dev/null || needed+=(default-jdk-headless)
command -v aapt2 >/dev/null || needed+=(aapt)
command -v gcc >/dev/null || needed+=(gcc libc6-dev)
command -v npm >/dev/null || needed+=(npm)
python3 -c 'import ensurepip' 2>/dev/null || needed+=(python3-venv)
[ -f /usr/share/java/junit4.jar ] || needed+=(junit4)
[ -f /usr/share/java/com.android.json.jar ] || needed+=(libandroid-json-java)
if [ ${#needed[@]} -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${needed[@]}" >/dev/null
fi

python=$(command -v python3)
if ! "$python" -c 'import hrm_edge.export, jinja2, onnx_ir, safetensors' 2>/dev/null; then
    [ -x "$tools/venv/bin/pip" ] || python3 -m venv --clear "$tools/venv"
    python=$tools/venv/bin/python
    "$python" -m pip install -q -e '..[export]'
fi

pack() { # package, file, members to unpack
    [ -d "$tools/${2%.tgz}" ] && return
    local scratch
    scratch=$(mktemp -d -p "$tools")
    (cd "$scratch" && npm pack --silent "$1" >/dev/null 2>&1 && mv ./*.tgz "$2")
    (cd "$scratch" && grep " $2$" <<<"$SHA256" | sha256sum --check --quiet)
    mkdir "$scratch/unpacked"
    tar xzf "$scratch/$2" -C "$scratch/unpacked" --strip-components 1 "${@:3}"
    mv "$scratch/unpacked" "$tools/${2%.tgz}"
    rm -r "$scratch"
}

debian() { # Android's stubs and resources are in Debian's unstable suite only
    [ -d "$tools/debian" ] && return
    local apt=$tools/apt site
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    site=$(apt-get indextargets --format '$(SITE)' | awk '/\/debian\/*$/ {site = $0} END {print site}')
    [ -n "$site" ] || { echo "Android's stubs come from Debian; this system has no such source"; return 1; }
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site sid main" >"$apt/sources.list"
    local options=(-o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o Dir::State::status=/dev/null
        -o APT::Sandbox::User=root -o Acquire::Languages=none
        -o Acquire::Check-Valid-Until=false) # a mirror may lag behind
    apt-get "${options[@]}" update -qq
    (cd "$apt" && apt-get "${options[@]}" download -qq libandroid-23-java android-framework-res)
    for deb in "$apt"/*.deb; do dpkg -x "$deb" "$apt/unpacked"; done
    mv "$apt/unpacked" "$tools/debian"
    rm -r "$apt"
}

step "Downloads (kept in build/tools)"
jobs=()
pack $KOTLIN kotlin.tgz package/lib & jobs+=($!)
pack $ORT ort.tgz package/Plugins/Android & jobs+=($!)
pack $EXECUTORCH executorch.tgz package/android/libs/classes.jar \
    package/third-party/android/libs/executorch/x86_64 & jobs+=($!)
pack $REACT react.tgz package/android/com/facebook/react/react-native & jobs+=($!)
debian & jobs+=($!)
for job in "${jobs[@]}"; do wait "$job"; done
if [ ! -d "$tools/api36" ]; then
    "$python" -m pip install -q --no-deps --target "$tools/api36.partial" "$API36"
    mv "$tools/api36.partial" "$tools/api36"
fi
if [ ! -d "$tools/aar" ]; then
    mkdir -p "$tools/aar.partial"
    (cd "$tools/aar.partial" && jar xf "$tools/ort/Plugins/Android/onnxruntime.aar" classes.jar jni/x86_64)
    mv "$tools/aar.partial" "$tools/aar"
fi

step "Bundles, and tokenizers with their ids"
rm -rf "$build/bundles" "$build/tokenizers"
"$python" checks/python_cases.py "$build/bundles"
"$python" checks/tokenizer_cases.py "$build/tokenizers"

step "Resources and manifest"
rm -rf "$build/resources"
mkdir -p "$build/resources"
aapt2 compile --dir app/src/main/res -o "$build/resources/compiled.zip"
sed 's/<manifest /<manifest package="org.hrmedge.app" /' app/src/main/AndroidManifest.xml \
    >"$build/resources/AndroidManifest.xml" # as Gradle does with the namespace
aapt2 link -I "$tools/debian/usr/share/android-framework-res/framework-res.apk" \
    --manifest "$build/resources/AndroidManifest.xml" --java "$build/resources/java" \
    --min-sdk-version 26 --target-sdk-version 36 -o "$build/resources/linked.apk" \
    "$build/resources/compiled.zip" 2>&1 | grep -v 'LoadedArsc.*Unknown chunk' || true
permissions=$(aapt2 dump permissions "$build/resources/linked.apk" 2>/dev/null | grep uses-permission || true)
test -s "$build/resources/linked.apk" && test -z "$permissions"
echo "linked; the app asks for no permission"

step "Kotlin against Android's stubs and the libraries' classes"
stdlib=$tools/kotlin/lib/kotlin-stdlib.jar
android=$tools/debian/usr/share/java/com.android.android-23.jar
libraries=$tools/aar/classes.jar:$tools/executorch/android/libs/classes.jar
kotlinc() {
    java -Xmx1200m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$tools/kotlin/lib/*" \
        org.jetbrains.kotlin.cli.jvm.K2JVMCompiler -kotlin-home "$tools/kotlin" \
        -jvm-target 1.8 -no-reflect -no-stdlib "$@"
}
rm -rf "$build/classes"
mkdir -p "$build/classes/stubs"
mapfile -t java < <(find checks/stubs "$build/resources/java" -name '*.java')
javac --release 8 -nowarn -Xlint:-options -cp "$android" -d "$build/classes/stubs" "${java[@]}"
mapfile -t main < <(find core/src/main app/src/main -name '*.kt')
kotlinc -no-jdk -cp "$stdlib:$build/classes/stubs:$android:$libraries" -d "$build/classes/app" "${main[@]}"
echo "${#main[@]} files compiled"

step "What the app names of the platform, in Android 16"
"$python" checks/api36.py "$tools/api36" "$build/classes/app"

step "Tests on the JVM"
jars=/usr/share/java/com.android.json.jar:/usr/share/java/junit4.jar:/usr/share/java/hamcrest-core.jar
jars+=:$tools/kotlin/lib/kotlin-test.jar:$tools/kotlin/lib/kotlin-test-junit.jar:$libraries:$stdlib
mapfile -t tests < <(find core/src/test core/src/testFixtures app/src/test -name '*.kt')
kotlinc "-Xfriend-paths=$build/classes/app" -cp "$build/classes/app:$jars" -d "$build/classes/test" "${tests[@]}"

native=$build/native
rm -rf "$native"
mkdir -p "$native" "$build/classes/fbjni"
gcc -O1 -shared -fPIC -Wl,-soname,libc.so -Wl,--no-as-needed -o "$native/libc.so" checks/bionic.c -lm
gcc -O1 -shared -fPIC -Wl,-soname,libonnxruntime.so -o "$native/libonnxruntime.so" checks/onnxruntime.c -ldl
(cd "$native" && jar xf "$tools"/react/android/com/facebook/react/react-native/*/*.aar jni/x86_64)
"$python" checks/desktop.py "$native" "$tools/aar/jni/x86_64/libonnxruntime4j_jni.so" \
    "$tools/executorch/third-party/android/libs/executorch/x86_64/libexecutorch.so" \
    "$native"/jni/x86_64/{libfbjni,libc++_shared}.so
mapfile -t java < <(find checks/fbjni -name '*.java')
javac --release 8 -nowarn -Xlint:-options -d "$build/classes/fbjni" "${java[@]}"
HRMEDGE_ONNXRUNTIME=$("$python" -c 'import glob, pathlib, importlib.util as u
folder = pathlib.Path(u.find_spec("onnxruntime").origin).parent / "capi"
print(*glob.glob(f"{folder}/libonnxruntime.so.*"))')
export HRMEDGE_ONNXRUNTIME
mapfile -t suites < <(cd "$build/classes/test" && find . -name '*Test.class' | sed 's|^\./||; s|\.class$||; s|/|.|g')
executorch="ExecuTorch's engine: hrm-tiny's .pte by the x86-64 JNI library of a third party's build for
  Android, on one thread; not executorch-android's own."
if [ ! -d "$build/bundles/executorch" ]; then # nothing here can export one
    mapfile -t suites < <(printf '%s\n' "${suites[@]}" | grep -v ExecuTorchEngineTest)
    executorch="ExecuTorch's engine: only compiled, as there is no bundle to try it on;
  pip install 'hrm-edge[executorch]' first."
fi
LD_LIBRARY_PATH=$native java -ea -Xmx512m -XX:+UseSerialGC "-Donnxruntime.native.path=$native" \
    "-Djava.library.path=$native" \
    "-Dhrmedge.bundles=$build/bundles" "-Dhrmedge.tokenizers=$build/tokenizers" \
    "-Dhrmedge.golden=$PWD/golden.json" "-Dhrmedge.spec=$PWD/../spec" -cp "$build/classes/app:$build/classes/test:$build/classes/fbjni:$jars" \
    org.junit.runner.JUnitCore "${suites[@]}"

step "Not checked here"
cat <<SKIPPED
- Gradle's scripts: neither Gradle 9 nor the Android plugin can be had from these registries.
- D8, R8 and lint: likewise. There is no APK.
- Types of arguments and results in API 36: the compiler saw API 23's; 36 was looked up by names
  and numbers of arguments.
- ONNX Runtime 1.30.0 for Android: tested were the classes and the JNI library of 1.29.0's AAR over
  the desktop's library of the version that the Python runtime uses.
- $executorch
- The screens: their layouts were only drawn with CSS (checks/preview.py), never by Android.
- Anything on an ARM processor, and Android's own kernel, memory killer, file picker and heat.
SKIPPED
