use super::readable_text;

fn check(html: &str, expected: &str) {
    assert_eq!(readable_text(html), expected, "{html}");
}

#[test]
fn paragraphs_lists_and_quotes() {
    check("<p>One\ntwo</p>\n\n<p>Three<br>four</p>\n", "One two\n\nThree\nfour");
    check("<p>a<p>b", "a\n\nb");
    check(
        "<ul>\n<li>x</li>\n<li>y\n<ul>\n<li>z</li>\n</ul></li>\n</ul>\n<p>end</p>",
        "- x\n- y\n  - z\n\nend",
    );
    check("<ol><li>x<li><p>y</p><p>z</p></ol>", "1. x\n\n2. y\n\n   z");
    check("<blockquote>\n<p>a</p>\n<p>b</p>\n</blockquote>\n<p>c</p>", "> a\n>\n> b\n\nc");
    check(
        "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>",
        "a | b\n1 | 2",
    );
}

#[test]
fn code_keeps_every_space() {
    check(
        "<p>Run:</p><pre><code>if x &lt; 1:\n    y()\n</code></pre><p>ok</p>",
        "Run:\n\n```\nif x < 1:\n    y()\n```\n\nok",
    );
    check("<p>use <code>a  &amp;&amp; b</code>, <code>`</code></p>", "use `a && b`, `` ` ``");
    check("<blockquote><pre><code>a\n\nb</code></pre></blockquote>", "> ```\n> a\n> \n> b\n> ```");
    check("<pre>```</pre>", "````\n```\n````");
}

#[test]
fn tex_is_untouched() {
    check(
        "<p>$$\\begin{align}\na &amp;= b \\\\\n  c\n\\end{align}$$</p>",
        "$$\\begin{align}\na &= b \\\\\n  c\n\\end{align}$$",
    );
    check(
        "<p>a  \\(x  y\\)  b \\begin{x}  \\begin{y} \n\\end{y}  \\end{x}  z</p>",
        "a \\(x  y\\) b \\begin{x}  \\begin{y} \n\\end{y}  \\end{x} z",
    );
    check("<p>If $x<y$ and $1<2$, $a<b>c$</p>", "If $x<y$ and $1<2$, $ac$");
    check(
        "<p>Let <span class=\"math-container\">$x  \\in \\$ $</span>  be</p>",
        "Let $x  \\in \\$ $ be",
    );
}

#[test]
fn small_things() {
    check("x<sup>2</sup>+y<sub>i+1</sub> <a href='u'>link</a><img src=x>", "x^2+y_(i+1) link");
    check("<script>x</script>a<!-- b -->c &nbsp; d &hellip;", "ac d …");
    check("<![x a", "<![x a");
    check("a < b </ x> c <x-y>d</x-y>", "a < b </ x> c <x-y>d</x-y>");
    check("", "");
}

/// Numbers as a browser shows them.
#[test]
fn ordered_lists_keep_their_numbers() {
    check("<ol start=\"3\"><li>a</li><li>b</li></ol>", "3. a\n4. b");
    check("<OL START='3'><LI>a<LI>b</OL>", "3. a\n4. b");
    check("<ol start=-1><li>a<li>b<li>c</ol>", "-1. a\n0. b\n1. c");
    check("<ol start=x><li>a</ol><ol start=2.7><li>b</ol>", "1. a\n\n2. b");
    check("<ol><li>a<li value=7>b<li>c<li value=\"x\">d</ol>", "1. a\n7. b\n8. c\n9. d");
    check("<ul start=3><li value=7>a</ul>", "- a");
    check("<ol reversed><li>a<ol><li>x<li>y</ol><li>b</ol>", "2. a\n   1. x\n   2. y\n1. b");
    check("<ol reversed start=10><li>a<li>b</ol>", "10. a\n9. b");
    check("<ol type=a start=26><li>z<li>aa</ol>", "z. z\naa. aa");
    check("<ol type=I><li>x</li></ol><ol><li>y</ol>", "I. x\n\n1. y");
    check(
        "<ol><li>a<ol start=5><li>b</ol><li>c<ul><li>d</ul></ol><li>e",
        "1. a\n   5. b\n2. c\n   - d\n\n- e",
    );
    check(
        "<ol><li>a</li></ol><pre><code>x</code></pre><ol start=\"2\"><li>b</li></ol>",
        "1. a\n\n```\nx\n```\n\n2. b",
    );
    check("<ol start=2147483647><li>a<li>b</ol>", "2147483647. a\n2147483647. b");
}

#[test]
fn mathml_is_tex_or_its_elements_in_a_line() {
    let elements = "<mrow><msup><mi>x</mi><mn>2</mn></msup><mo>+</mo><mfrac><mn>1</mn>\
        <mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow></mfrac></mrow>";
    check(&format!("so <math>{elements}</math> is"), "so x^2+1/(a+b) is");
    let tex = "<annotation encoding=\"application/x-tex\">x^{2} +\n1</annotation>";
    check(
        &format!("so <math><semantics>{elements}{tex}</semantics></math> is"),
        "so $x^{2} + 1$ is",
    );
    check(
        "<math display='block' alttext='\\frac{1}{2}'><mfrac><mn>1</mn><mn>2</mn></mfrac></math>",
        "$$\\frac{1}{2}$$",
    );
    check("<math alttext='one half'><mfrac><mn>1</mn><mn>2</mn></mfrac></math>", "1/2");
    check(
        "<math><msqrt><mi>x</mi></msqrt><mo>&#x2062;</mo><msubsup><mi>a</mi><mi>i</mi><mn>10</mn></msubsup></math>",
        "sqrt(x)a_i^10",
    );
    check(
        "<math><mi>sin</mi><mi>x</mi><mo>=</mo><mi>a</mi><mi>b</mi><mtext> if </mtext><mi>x</mi></math>",
        "sin x=ab if x",
    );
    // KaTeX writes every formula twice.
    check(
        &format!(
            "a <span class=\"katex\"><math><semantics>{elements}{tex}</semantics></math>\
             <span class='katex-html' aria-hidden=true><span>x</span>2</span></span> b"
        ),
        "a $x^{2} + 1$ b",
    );
    // An unclosed formula loses no text.
    check("<p>a <math><mi>x</mi><p>b</p>", "a x\n\nb");
    check("<p>a <math><mi>x</p> b", "a x\n\nb");
    check("a <math/> b", "a b");
    let annotation = "<annotation-xml><p>no</p></annotation-xml>";
    check(&format!("<math><semantics><mi>x</mi>{annotation}</semantics></math><p>c"), "x\n\nc");
}

/// Elements that add text to each line or around their content do so only to a limited depth.
#[test]
fn deep_nesting_stays_small() {
    let deep = |open: &str, text: &str| readable_text(&(open.repeat(10_000) + text));
    let lines = "x<br>".repeat(2000);
    for (open, least) in [
        ("<blockquote>", 2000),
        ("<ul><li>", 2000),
        ("<pre>", 2000),
        ("<sup>", 2000),
        ("<code>", 2000),
        ("<div>", 2000),
        ("<table><tr><td>", 2000),
    ] {
        let text = deep(open, &lines);
        assert_eq!(text.matches('x').count(), least, "{open}");
        assert!(text.len() < 1_000_000, "{open}: {}", text.len());
    }
}
