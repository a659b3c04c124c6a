#!/usr/bin/env bash
# An APK of the app without Android's SDK and Gradle: from Debian, npm and PyPI alone.
#
#   bash android_demo/build_apk.sh
#
# Writes build/apk/hrm-edge.apk, signed with a debug key that is made on the spot, for arm64-v8a and
# x86_64, hrm-tiny and hrm-g2p inside. Everything but the signature is the same in each run. Left out are
# ExecuTorch's engine, whose library has no maintained package outside of Maven, and the classes with
# which ONNX Runtime would report to its makers. Gradle stays the official way.
set -euo pipefail
cd "$(dirname "$0")"
source ./tools.sh
out=$build/apk
VERSION=$(sed -n 's/.*versionName = "\(.*\)"/\1/p' app/build.gradle.kts)
CODE=$(sed -n 's/.*versionCode = \(.*\)/\1/p' app/build.gradle.kts)

step "Tools and downloads (kept in build/tools)"
programs javac:default-jdk-headless aapt2:aapt npm:npm apksigner:apksigner proguard:proguard-cli
find_python
dex_compiler() { debian bullseye dalvik-exchange; }
in_parallel kotlin_package ort_package executorch_package stubs dex_compiler

step "Resources and manifest"
rm -rf "$build/resources" "$out"
mkdir -p "$build/resources" "$out/dex" "$out/libraries" "$out/assets"
aapt2 compile --dir app/src/main/res -o "$build/resources/compiled.zip"
# As Gradle does: the namespace, libraries read where they lie, and what is not to be merged in.
sed -e 's/<manifest /<manifest package="org.hrmedge.app" /' \
    -e 's/<application/<application android:extractNativeLibs="false"/' \
    -e '/tools:node="remove"/d' app/src/main/AndroidManifest.xml >"$build/resources/AndroidManifest.xml"
aapt2 link -I "$tools/sid/usr/share/android-framework-res/framework-res.apk" \
    --manifest "$build/resources/AndroidManifest.xml" --java "$build/resources/java" \
    --min-sdk-version 26 --target-sdk-version 36 --version-code "$CODE" --version-name "$VERSION" \
    -o "$build/resources/linked.apk" "$build/resources/compiled.zip" 2>&1 | grep -v 'LoadedArsc.*Unknown chunk' || true
test -s "$build/resources/linked.apk"

step "Kotlin against Android's stubs and the libraries' classes"
rm -rf "$build/classes"
mkdir -p "$build/classes/stubs"
mapfile -t java < <(find checks/stubs "$build/resources/java" -name '*.java' | sort)
javac --release 8 -nowarn -Xlint:-options -cp "$android" -d "$build/classes/stubs" "${java[@]}"
mapfile -t main < <(find core/src/main app/src/main -name '*.kt' | sort)
kotlinc -no-jdk -cp "$stdlib:$build/classes/stubs:$android:$libraries" -d "$build/classes/app" "${main[@]}"
mkdir "$build/classes/resources"
mapfile -t java < <(find "$build/resources/java" -name '*.java')
javac --release 8 -nowarn -Xlint:-options -d "$build/classes/resources" "${java[@]}"
echo "${#main[@]} files compiled"

step "Classes for Android 8: ProGuard takes lambdas apart, dx makes Dalvik's code"
"$python" apk/downlevel.py "$tools/aar/classes.jar" "$out/onnxruntime.jar"
telemetry='!ai/onnxruntime/telemetry/**,!ai/onnxruntime/TelemetryInitializer.class'
proguard -injars "$out/onnxruntime.jar($telemetry):$build/classes/app(**.class):$build/classes/resources:$stdlib(kotlin/**.class)" \
    -outjars "$out/classes.jar" -libraryjars "$android" -target 1.7 -dontoptimize -dontshrink \
    -keep 'class ** { *; }' -keep 'interface ** { *; }' -dontnote -dontwarn \
    -keepattributes 'Exceptions,InnerClasses,Signature,EnclosingMethod,SourceFile,LineNumberTable,RuntimeVisibleAnnotations' >/dev/null
java -Xmx1500m -cp "$tools/bullseye/usr/share/java/*" com.android.dx.command.Main --dex \
    --min-sdk-version=26 "--output=$out/dex/classes.dex" "$out/classes.jar"

step "The models, the libraries and their notices"
"$python" -m hrm_edge export hrm-tiny -o "$out/assets/assets/hrm-tiny" >/dev/null
cp -r ../hrm_edge/data/hrm-g2p "$out/assets/assets/hrm-g2p"
notices=$out/assets/assets/notices
mkdir "$notices"
cp ../LICENSE "$notices/1 hrm-edge.txt"
cp "$tools/ort/LICENSE" "$notices/2 ONNX Runtime.txt"
cp "$tools/ort/ThirdPartyNotices.txt" "$notices/3 what ONNX Runtime contains.txt"
cat "$tools/kotlin/license/NOTICE.txt" "$tools/kotlin/license/LICENSE.txt" >"$notices/4 Kotlin.txt"
for abi in arm64-v8a x86_64; do
    mkdir -p "$out/libraries/lib/$abi"
    cp "$tools/aar/jni/$abi/"*.so "$out/libraries/lib/$abi/"
done

step "The APK"
"$python" apk/pack.py "$out/unsigned.apk" "$build/resources/linked.apk" "$out/dex" "$out/assets" "$out/libraries"
if [ ! -f "$build/debug.keystore" ]; then
    keytool -genkeypair -keystore "$build/debug.keystore" -storepass android -keypass android -alias debug \
        -keyalg RSA -keysize 2048 -validity 10000 -dname "CN=Debug" 2>/dev/null
fi
apksigner sign --ks "$build/debug.keystore" --ks-pass pass:android --min-sdk-version 26 \
    --v1-signing-enabled false --v2-signing-enabled true --v3-signing-enabled false \
    --out "$out/hrm-edge.apk" "$out/unsigned.apk"
sha256sum "$out/unsigned.apk" | awk '{print "without the signature: sha256 " $1}'
ls -l "$out/hrm-edge.apk" | awk '{printf "build/apk/hrm-edge.apk: %.1f MB\n", $5 / 1e6}'
