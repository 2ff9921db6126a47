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

/// This process's libraries. One lock: a library that two threads ask for is compiled once.
final class ShaderLibraries: @unchecked Sendable {
  static let shared = ShaderLibraries(policy: .ofProcess(), origins: .shared)

  private let policy: ShaderPolicy
  private let origins: ShaderOrigins
  private let lock = NSLock()
  private var libraries: [String: Result<MTLLibrary, MetalLibraryCompilerError>] = [:]
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
    if let mistake = policy.mistake { throw MetalLibraryCompilerError(attempts: [mistake]) }
    let options = ShaderText.settled(options)
    let forms = ShaderText.forms(of: source, options: options, forced: policy.variant)
    let name = "\(device.registryID) \(forms[0].key)"
    lock.lock()
    defer { lock.unlock() }
    // A failure is kept too: what no compiler takes now, none takes a moment later.
    if let known = libraries[name] { return try known.get() }
    let result = search(device: device, forms: forms, options: options)
    libraries[name] = result
    return try result.get()
  }

  private func search(device: MTLDevice, forms: [ShaderText], options: MTLCompileOptions)
    -> Result<MTLLibrary, MetalLibraryCompilerError>
  {
    let start = Date()
    var attempts = packMistake.map { [$0] } ?? []
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
          note(form, place, since: start, attempts)
          return .success(library)
        } catch {
          attempts.append("\(place.rawValue) (\(form.variant.rawValue)): \(error)")
        }
      }
    }
    note(forms[0], .failed, since: start, attempts)
    return .failure(MetalLibraryCompilerError(attempts: attempts))
  }

  private func fromPack(_ form: ShaderText, device: MTLDevice) throws -> MTLLibrary? {
    guard let pack, let entry = pack.libraries[form.key] else { return nil }
    return try device.makeLibrary(URL: entry.verified(in: pack.folder, on: policy.system))
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
    _ form: ShaderText, _ place: ShaderOrigin.Place, since start: Date, _ attempts: [String]
  ) {
    origins.add(
      ShaderOrigin(
        key: form.key, variant: form.variant, origin: place,
        milliseconds: Date().timeIntervalSince(start) * 1000, attempts: attempts))
  }
}
