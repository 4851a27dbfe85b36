# Prints "ARCH SHA256 URL" of Debian's iptables and all that it depends on. apt does
# so in a place of its own, for which it needs nothing but the keys of Debian.
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/state/lists/partial" "$dir/cache/archives/partial" "$dir/etc/apt.conf.d" "$dir/etc/preferences.d"
: >"$dir/status"
for suite in debian:trixie debian:trixie-updates debian-security:trixie-security; do
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/${suite%%:*} ${suite#*:} main"
done >"$dir/etc/sources.list"
for arch in amd64 arm64; do
	in_place() {
		program=$1
		shift
		"$program" -q -o Dir::State="$dir/state" -o Dir::State::status="$dir/status" -o Dir::Cache="$dir/cache" \
			-o Dir::Etc="$dir/etc" -o Dir::Etc::sourcelist="$dir/etc/sources.list" -o Dir::Etc::sourceparts=/dev/null \
			-o APT::Architecture=$arch -o APT::Architectures=$arch -o APT::Sandbox::User=root "$@"
	}
	in_place apt-get update >&2
	# Of one whose version is on several mirrors the first address will do.
	in_place apt-get install -y --no-install-recommends --print-uris iptables | sed -n "s/^'\([^']*\)' \([^_]*\)_.*/\2 \1/p" |
		while read -r package url; do
			case $package in gcc-*-base | libgcc-s1) continue ;; esac # nothing of theirs is kept
			file=$(basename "$url" | sed 's/%2b/+/g; s/%3a/:/g')
			version=${file#*_}
			sum=$(in_place apt-cache show "$package" | awk -v file="$file" '/^Filename:/ {n = split($2, p, "/"); found = p[n] == file} /^SHA256:/ && found {print $2; exit}')
			[ -n "$sum" ] || { echo "$package ${version%_*}: no SHA256 in the index" >&2; exit 1; }
			echo "$arch $sum $url"
		done
done
