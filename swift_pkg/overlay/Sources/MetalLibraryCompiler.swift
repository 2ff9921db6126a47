import Foundation
@preconcurrency import Metal

/// The one way from Metal source to a library: shader pack, user's cache, run-time compiler, `xcrun`.
///
/// Later upstream commits have a helper with this name and method; ours takes its place.
public enum MetalLibraryCompiler {
  /// Return the library for `source`, from wherever it can be had.
  ///
  /// - Throws: `MetalLibraryCompilerError`, which lists everything that was tried.
  public static func makeLibrary(
    device: MTLDevice, source: String, options: MTLCompileOptions?
  ) throws -> MTLLibrary {
    try ShaderLibraries.shared.library(device: device, source: source, options: options)
  }

  /// Return a pipeline of `source`, from the first form of it of which one can be made.
  ///
  /// A compiler may accept a source whose functions the device then refuses: private symbols that it
  /// does not know, or constants. The next form of the source is tried then, too.
  ///
  /// - Parameter function: Takes the kernel out of a library.
  /// - Throws: `MetalLibraryCompilerError`, which lists everything that was tried.
  public static func makePipeline(
    device: MTLDevice, source: String, options: MTLCompileOptions?,
    function: (MTLLibrary) throws -> MTLFunction
  ) throws -> MTLComputePipelineState {
    try ShaderLibraries.shared.pipeline(device: device, source: source, options: options) {
      try device.makeComputePipelineState(function: function($0))
    }
  }
}

public struct MetalLibraryCompilerError: Error, CustomStringConvertible {
  public let attempts: [String]

  public var description: String {
    "no Metal library could be had: " + attempts.joined(separator: "; ")
  }
}

/// Where libraries may come from, as this process's environment says.
struct ShaderPolicy {
  static let variantVariable = "QWEN_MFA_SHADER_VARIANT"
  static let cacheVariable = "QWEN_MFA_CACHE_DIR"

  var pack: URL?
  var cache: URL?
  /// Nil: upstream's first, then ours.
  var variant: ShaderVariant?
  /// What a variable says wrong; then nothing is compiled.
  var mistake: String?
  var xcrun: URL?
  var timeLimit: TimeInterval = 120
  var system = ProcessInfo.processInfo.operatingSystemVersion

  static func ofProcess() -> ShaderPolicy {
    let environment = ProcessInfo.processInfo.environment
    var policy = ShaderPolicy()
    policy.pack = libraryFolder()?.appendingPathComponent("shaders", isDirectory: true)
    policy.cache = environment[cacheVariable].map { URL(fileURLWithPath: $0) } ?? userCache()
    policy.xcrun = OfflineShaderCompiler.installed()
    if let wanted = environment[variantVariable], !wanted.isEmpty {
      policy.variant = ShaderVariant(rawValue: wanted)
      if policy.variant == nil {
        policy.mistake = "\(variantVariable)=\(wanted) is neither upstream nor plain"
      }
    }
    return policy
  }

  private static func userCache() -> URL? {
    FileManager.default.urls(for: .cachesDirectory, in: .userDomainMask).first?
      .appendingPathComponent("qwen-mfa", isDirectory: true)
  }

  /// The folder of the dynamic library that holds this very code.
  private static func libraryFolder() -> URL? {
    var facts = Dl_info()
    guard dladdr(#dsohandle, &facts) != 0, let name = facts.dli_fname else { return nil }
    return URL(fileURLWithPath: String(cString: name)).deletingLastPathComponent()
  }
}

/// A library, and the form and place that it came from.
private struct Found {
  let library: MTLLibrary
  let form: ShaderText
  let place: ShaderOrigin.Place
}

/// This process's libraries. One lock: a library that two threads ask for is compiled once.
final class ShaderLibraries: @unchecked Sendable {
  static let shared = ShaderLibraries(policy: .ofProcess(), origins: .shared)

  private let policy: ShaderPolicy
  private let origins: ShaderOrigins
  private let lock = NSLock()
  private var libraries: [String: Result<Found, MetalLibraryCompilerError>] = [:]
  private var pack: ShaderPack?
  private var packMistake: String?

  init(policy: ShaderPolicy, origins: ShaderOrigins) {
    self.policy = policy
    self.origins = origins
    do {
      pack = try policy.pack.flatMap { try ShaderPack(folder: $0) }
    } catch {
      packMistake = "pack: \(error)"
    }
  }

  func library(device: MTLDevice, source: String, options: MTLCompileOptions?) throws -> MTLLibrary
  {
    let request = try Request(device: device, source: source, options: options, policy: policy)
    lock.lock()
    defer { lock.unlock() }
    return try found(request, without: []).library
  }

  func pipeline<P>(
    device: MTLDevice, source: String, options: MTLCompileOptions?,
    make: (MTLLibrary) throws -> P
  ) throws -> P {
    let request = try Request(device: device, source: source, options: options, policy: policy)
    lock.lock()
    defer { lock.unlock() }
    var refused: [Refusal] = []
    while true {
      let found = try found(request, without: refused)
      do {
        let made = try make(found.library)
        // From now on every pipeline of this source is made of the form that works.
        libraries[request.name] = .success(found)
        return made
      } catch {
        refused.append(
          Refusal(
            variant: found.form.variant,
            text: "\(found.place.rawValue) (\(found.form.variant.rawValue)): pipeline: \(error)"))
      }
    }
  }

  private struct Request {
    let device: MTLDevice
    let options: MTLCompileOptions
    let forms: [ShaderText]
    var name: String { "\(device.registryID) \(forms[0].key)" }

    init(
      device: MTLDevice, source: String, options: MTLCompileOptions?, policy: ShaderPolicy
    ) throws {
      if let mistake = policy.mistake { throw MetalLibraryCompilerError(attempts: [mistake]) }
      self.device = device
      self.options = ShaderText.settled(options)
      forms = ShaderText.forms(of: source, options: self.options, forced: policy.variant)
    }
  }

  /// A form of which no pipeline could be made, and why.
  private struct Refusal {
    let variant: ShaderVariant
    let text: String
  }

  private func found(_ request: Request, without refused: [Refusal]) throws -> Found {
    guard refused.isEmpty else { return try search(request, without: refused).get() }
    // A failure is kept too: what no compiler takes now, none takes a moment later.
    if let known = libraries[request.name] { return try known.get() }
    let result = search(request, without: refused)
    libraries[request.name] = result
    return try result.get()
  }

  private func search(_ request: Request, without refused: [Refusal])
    -> Result<Found, MetalLibraryCompilerError>
  {
    let start = Date()
    let (device, options) = (request.device, request.options)
    var attempts = (packMistake.map { [$0] } ?? []) + refused.map(\.text)
    let forms = request.forms.filter { form in
      !refused.contains { $0.variant == form.variant }
    }
    let sources: [(ShaderOrigin.Place, (ShaderText) throws -> MTLLibrary?)] = [
      (.pack, { try self.fromPack($0, device: device) }),
      (.cache, { try self.fromCache($0, device: device) }),
      (.runtime, { try device.makeLibrary(source: $0.source, options: options) }),
      (.xcrun, { try self.fromXcrun($0, device: device, options: options) }),
    ]
    for (place, find) in sources {
      for form in forms {
        do {
          guard let library = try find(form) else { continue }
          note(form, options, place, since: start, attempts)
          return .success(Found(library: library, form: form, place: place))
        } catch {
          attempts.append("\(place.rawValue) (\(form.variant.rawValue)): \(error)")
        }
      }
    }
    note(request.forms[0], options, .failed, since: start, attempts)
    return .failure(MetalLibraryCompilerError(attempts: attempts))
  }

  private func fromPack(_ form: ShaderText, device: MTLDevice) throws -> MTLLibrary? {
    guard let file = try pack?.find(form.key, on: policy.system) else { return nil }
    return try device.makeLibrary(URL: file)
  }

  private func fromCache(_ form: ShaderText, device: MTLDevice) throws -> MTLLibrary? {
    guard let folder = policy.cache else { return nil }
    let cache = ShaderCache(folder: folder)
    guard let file = try cache.find(form.key, on: policy.system) else { return nil }
    do {
      return try device.makeLibrary(URL: file)
    } catch {
      cache.remove(form.key)
      throw error
    }
  }

  private func fromXcrun(_ form: ShaderText, device: MTLDevice, options: MTLCompileOptions) throws
    -> MTLLibrary?
  {
    guard let xcrun = policy.xcrun else {
      throw OfflineShaderCompiler.Failure(
        description: "no developer tools (xcode-select --install, or choose Xcode)")
    }
    let manager = FileManager.default
    let scratch = manager.temporaryDirectory.appendingPathComponent(
      "qwen-mfa-\(UUID().uuidString)", isDirectory: true)
    try manager.createDirectory(
      at: scratch, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
    defer { try? manager.removeItem(at: scratch) }
    let tool = OfflineShaderCompiler(xcrun: xcrun, timeLimit: policy.timeLimit)
    let (file, compiler) = try tool.compile(form, options: options, in: scratch)
    let library = try device.makeLibrary(URL: file)
    // A cache that cannot be written costs time at the next start, nothing else.
    if let folder = policy.cache {
      _ = try? ShaderCache(folder: folder)
        .store(file, as: form.key, variant: form.variant, compiler: compiler)
    }
    return library
  }

  private func note(
    _ form: ShaderText, _ options: MTLCompileOptions, _ place: ShaderOrigin.Place,
    since start: Date, _ attempts: [String]
  ) {
    origins.add(
      ShaderOrigin(
        key: form.key, variant: form.variant, options: ShaderText.describe(options), origin: place,
        milliseconds: Date().timeIntervalSince(start) * 1000, attempts: attempts))
  }
}
