"""The XMP packet that says how an image was made: IPTC Photo Metadata 2025.1, serialised as in XMP part 1."""

from __future__ import annotations

from xml.sax.saxutils import escape

#: IPTC's code for media that a trained model generated.
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>
   <Iptc4xmpExt:AISystemUsed>{model} ({service})</Iptc4xmpExt:AISystemUsed>
   <xmp:CreatorTool>{model}</xmp:CreatorTool>
   <dc:identifier>{task_id}</dc:identifier>
{prompt}  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""
_PROMPT = """   <Iptc4xmpExt:AIPromptInformation>{prompt}</Iptc4xmpExt:AIPromptInformation>
   <dc:description><rdf:Alt><rdf:li xml:lang="x-default">{prompt}</rdf:li></rdf:Alt></dc:description>
"""


def packet(service: str, model: str, task_id: str, prompt: str | None) -> str:
    """Return the packet, always the same for the same arguments.

    :param prompt: None: left out.
    """
    about_prompt = "" if prompt is None else _PROMPT.format(prompt=escape(prompt))
    return _PACKET.format(
        source_type=DIGITAL_SOURCE_TYPE,
        model=escape(model),
        service=escape(service),
        task_id=escape(task_id),
        prompt=about_prompt,
    )
