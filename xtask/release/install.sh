#!/bin/sh
# Installs Karst's command line, charts and samples from a release: fetches the archive for this machine, verifies its
# checksum, and unpacks it into a folder. Needs no root, and changes nothing else. POSIX sh, with curl or wget.
set -eu

version=${KARST_VERSION:-@VERSION@}
mirror=${KARST_MIRROR:-@MIRROR@}
folder=${KARST_DIR:-.}
sums=

usage() {
  cat <<'END'
usage: install.sh [--version VERSION] [--mirror ADDRESS] [--dir FOLDER] [--sums FILE]

  --version VERSION   the release, such as 0.1.0             (or KARST_VERSION)
  --mirror ADDRESS    where releases are: http(s)://..., or a folder of this machine; below it is
                      a folder for each version              (or KARST_MIRROR)
  --dir FOLDER        where karst-VERSION is unpacked; the current folder if not given (or KARST_DIR)
  --sums FILE         the release's SHA256SUMS, got from somewhere that you trust more than the mirror
END
}

fail() {
  echo "install.sh: $*" >&2
  exit 1
}

# fetch FILE: from the mirror into the work folder.
fetch() {
  from=$mirror/$version/$1
  case $mirror in
    http://* | https://*) ;;
    *://*) fail "--mirror $mirror: an address of http or https is wanted, or a folder" ;;
    *)
      [ -d "$mirror/" ] || fail "--mirror $mirror: there is no such folder"
      [ -d "$mirror/$version" ] || fail "version $version is not in $mirror: there is no folder of that name"
      [ -f "$from" ] || absent "$1"
      cp "$from" "$work/$1" || fail "cannot copy $from"
      return
      ;;
  esac
  status=0
  if command -v curl > /dev/null 2>&1; then
    answer=$(curl --silent --show-error --location --retry 2 --connect-timeout 20 --output "$work/$1" \
      --write-out '%{http_code}' "$from" 2> "$work/said") || status=$?
    case $status:$answer in
      0:200) return ;;
      0:404) absent "$1" ;;
      0:*) fail "$from: the mirror answers with status $answer" ;;
    esac
  elif command -v wget > /dev/null 2>&1; then
    # GNU's tries twenty times unless told; busybox's has no such option.
    tries=
    if wget --version > /dev/null 2>&1; then tries='-t 2'; fi
    # shellcheck disable=SC2086 # two words, or none
    wget -T 20 $tries -O "$work/$1" "$from" 2> "$work/said" || status=$?
    if [ "$status" = 0 ]; then return; fi
    if grep -q ' 404' "$work/said"; then absent "$1"; fi
  else
    fail "neither curl nor wget is installed: install one of them"
  fi
  fail "$from cannot be fetched: is the mirror up, and can it be reached from here? $(tail -n 1 "$work/said")"
}

# absent FILE: the mirror does not have it.
absent() {
  case $1 in
    SHA256SUMS) fail "version $version is not on the mirror: there is no $from" ;;
    *) fail "release $version was not built for $architecture: there is no $from" ;;
  esac
}

checksum() {
  if command -v sha256sum > /dev/null 2>&1; then
    sha256sum "$1"
  elif command -v shasum > /dev/null 2>&1; then
    shasum -a 256 "$1"
  elif command -v openssl > /dev/null 2>&1; then
    openssl dgst -sha256 -r "$1"
  else
    fail "none of sha256sum, shasum, openssl is installed: the checksum cannot be verified"
  fi
}

# All of the work: of a script that was fetched in part, nothing runs.
main() {
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help)
        usage
        exit 0
        ;;
      --version | --mirror | --dir | --sums)
        [ $# -ge 2 ] || fail "$1 needs a value; see install.sh --help"
        case $1 in
          --version) version=$2 ;;
          --mirror) mirror=$2 ;;
          --dir) folder=$2 ;;
          --sums) sums=$2 ;;
        esac
        shift 2
        ;;
      *) fail "$1: no such option; see install.sh --help" ;;
    esac
  done

  version=${version#v}
  case $version in
    '' | *[!0-9A-Za-z.-]*) fail "--version '$version': a version such as 0.1.0 is wanted" ;;
  esac
  [ -n "$mirror" ] || fail "no mirror: say where the releases are, with --mirror ADDRESS or KARST_MIRROR"
  mirror=${mirror%/}

  system=$(uname -s)
  [ "$system" = Linux ] || fail "karst is built for Linux only, and this is $system"
  machine=$(uname -m)
  case $machine in
    x86_64 | amd64) architecture=amd64 ;;
    aarch64 | arm64) architecture=arm64 ;;
    *) fail "no release is built for $machine machines: amd64 and arm64 are known" ;;
  esac

  [ -d "$folder" ] || fail "--dir $folder: there is no such folder; make it, or give another"
  [ -w "$folder" ] || fail "--dir $folder: this user may not write there; give a folder of yours"
  name=karst-$version
  [ ! -e "$folder/$name" ] || fail "$folder/$name is there already: remove it, or give another folder with --dir"

  work=$(mktemp -d "$folder/.$name.XXXXXX") || fail "cannot make a folder in $folder"
  trap 'rm -rf "$work"' EXIT
  trap 'exit 1' HUP INT TERM

  archive=$name-linux-$architecture.tar.gz
  if [ -n "$sums" ]; then
    [ -r "$sums" ] || fail "--sums $sums: there is no such file, or it may not be read"
    cp "$sums" "$work/SHA256SUMS"
  else
    fetch SHA256SUMS
  fi
  wanted=
  while read -r hash file; do
    if [ "${file#\*}" = "$archive" ]; then wanted=$hash; fi
  done < "$work/SHA256SUMS"
  [ -n "$wanted" ] || fail "SHA256SUMS has no line for $archive: release $version was not built for $architecture, or the file is of another release"
  fetch "$archive"
  is=$(checksum "$work/$archive")
  is=${is%% *}
  [ "$is" = "$wanted" ] || fail "$archive is not what was released: its SHA-256 is $is, and SHA256SUMS says $wanted. Nothing was installed; try another mirror"

  tar -xzf "$work/$archive" -C "$work" || fail "$archive cannot be unpacked: is there room in $folder?"
  [ -x "$work/$name/bin/karst" ] || fail "$archive has no $name/bin/karst"
  mv "$work/$name" "$folder/$name" || fail "cannot move $name into $folder"
  place=$(cd "$folder/$name/bin" && pwd)
  echo "Karst $version is in $folder/$name; its checksum is right."
  echo "next:  export PATH=\"$place:\$PATH\""
  echo "       karst check              # is the cluster ready for it?"
  echo "       karst install            # with --set hub=REGISTRY/karst if the images are in a registry of yours"
}

main "$@"
