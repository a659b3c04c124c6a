#!/usr/bin/env bash
# Everything about the app that can be checked without Android's SDK, Gradle and a device.
#
#   bash android_demo/check.sh
#
# Builds the APK (build_apk.sh), looks whether it is whole, looks up all that the app names in API 36,
# translates the APK's Dalvik code back, and runs that, core and engines, on this machine's JVM with
# the JNI libraries of the APK. Installs what it needs from Debian, npm and PyPI.
set -euo pipefail
cd "$(dirname "$0")"
source ./tools.sh

bash build_apk.sh
app=$build/apk/hrm-edge.apk

step "The APK is whole"
programs gcc:gcc /usr/include/stdio.h:libc6-dev dexdump:dexdump readelf:binutils enjarify:enjarify \
    /usr/share/java/junit4.jar:junit4 /usr/share/java/com.android.json.jar:libandroid-json-java
find_python
"$python" apk/verify.py "$app" "$build/classes/app"
apksigner verify --verbose --min-sdk-version 26 "$app" 2>&1 | grep -E '^Verifie(s|d using v2)'
permissions=$(aapt2 dump permissions "$app" 2>/dev/null | grep uses-permission || true)
test -z "$permissions"
aapt2 dump badging "$app" 2>/dev/null | grep -E '^(package|sdkVersion|targetSdkVersion|application-label|native-code)'
echo "the app asks for no permission"

step "Downloads for the tests (kept in build/tools)"
fbjni_package() { pack $REACT react.tgz package/android/com/facebook/react/react-native; }
fbjni_package
if [ ! -d "$tools/api36" ]; then
    "$python" -m pip install -q --no-deps --target "$tools/api36.partial" "$API36"
    mv "$tools/api36.partial" "$tools/api36"
fi

step "Bundles, and tokenizers with their ids"
rm -rf "$build/bundles" "$build/tokenizers"
"$python" checks/python_cases.py "$build/bundles"
"$python" checks/tokenizer_cases.py "$build/tokenizers"

step "What the app names of the platform, in Android 16"
"$python" checks/api36.py "$tools/api36" "$build/classes/app"

step "Tests on the JVM"
back=$build/apk/back.jar # the app, ONNX Runtime's classes and Kotlin's, as they are in the APK
/usr/bin/python3 -O -m enjarify.main -f -o "$back" "$app" 2>&1 | grep translated
jars=/usr/share/java/com.android.json.jar:/usr/share/java/junit4.jar:/usr/share/java/hamcrest-core.jar
jars+=:$tools/kotlin/lib/kotlin-test.jar:$tools/kotlin/lib/kotlin-test-junit.jar
jars+=:$tools/executorch/android/libs/classes.jar
mapfile -t tests < <(find core/src/test core/src/testFixtures app/src/test -name '*.kt')
kotlinc "-Xfriend-paths=$build/classes/app" -cp "$build/classes/app:$jars:$tools/aar/classes.jar:$stdlib" -d "$build/classes/test" "${tests[@]}"

native=$build/native
rm -rf "$native"
mkdir -p "$native" "$build/classes/fbjni"
gcc -O1 -shared -fPIC -Wl,-soname,libc.so -Wl,--no-as-needed -o "$native/libc.so" checks/bionic.c -lm
(cd "$native" && jar xf "$tools"/react/android/com/facebook/react/react-native/*/*.aar jni/x86_64)
"$python" checks/desktop.py "$native" "$build"/apk/extracted/lib/x86_64/libonnxruntime{,4j_jni}.so \
    "$tools/executorch/third-party/android/libs/executorch/x86_64/libexecutorch.so" \
    "$native"/jni/x86_64/{libfbjni,libc++_shared}.so
mapfile -t java < <(find checks/fbjni -name '*.java')
javac --release 8 -nowarn -Xlint:-options -d "$build/classes/fbjni" "${java[@]}"
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
    "-Dhrmedge.golden=$PWD/golden.json" "-Dhrmedge.spec=$PWD/../spec" -cp "$back:$build/classes/test:$build/classes/fbjni:$jars" \
    org.junit.runner.JUnitCore "${suites[@]}"

step "Not checked here"
cat <<SKIPPED
- Gradle's scripts, D8, R8 and lint: neither Gradle 9 nor the Android plugin can be had from these
  registries. The APK is dx's.
- Types of arguments and results in API 36: the compiler saw API 23's; 36 was looked up by names
  and numbers of arguments.
- ONNX Runtime 1.30.0, which Gradle takes: the APK and the tests have 1.29.0.
- $executorch
- The screens: their layouts were only drawn with CSS (checks/preview.py), never by Android.
- Anything on an ARM processor, and Android's own kernel, memory killer, file picker and heat.
SKIPPED
